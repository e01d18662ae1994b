"""Text and tables as escaped Markdown, within the size limit of a job summary."""

MOST_BYTES = 1_000_000  # a GitHub job summary holds 1 MiB
LONGEST = 1000  # characters of any one text in report.md


def clip(text: str) -> str:
    """Text escaped for Markdown, cut if it is longer than LONGEST."""
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


def fit(text: str, whole: str) -> str:
    """A report, cut at the end of a line if it is too large. whole: the file that has all of it."""
    data = text.encode(errors="backslashreplace")  # lone surrogates cannot be encoded
    if len(data) <= MOST_BYTES:
        return data.decode()
    note = f"\n\n... cut here: {whole} has all of it\n"
    kept = data[: MOST_BYTES - len(note)].decode(errors="ignore")
    return kept[: kept.rfind("\n")] + note


def escape(text: str) -> str:
    """Text with every character escaped that Markdown would interpret."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text)


def table(header: list[str], body: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]
