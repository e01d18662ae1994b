"""report.html: one page, in one file, that shows who is right, where it breaks and how fast it is.

Everything on it comes from the rows of results.json and bench.json. Here rows become plain tables
and figures, a part of the page in each module; templates/ turn those into HTML, where every text is
escaped. The page has no script and asks for nothing from anywhere, and says so to the browser.

May import: verdict, checks, files, contract.
"""
