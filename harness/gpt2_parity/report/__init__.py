"""Reports: results.json, junit.xml, report.md, the terminal, and report.html, a self-contained page.

Everything in them comes from the rows of results.json and bench.json. Each module turns rows into the
plain tables and figures of one part of the page; templates/ turn those into HTML, where every text is
escaped. The page has no script and loads nothing; its Content-Security-Policy forbids both.

May import: verdict, checks, files, contract.
"""
