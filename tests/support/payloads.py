"""Texts that mean harm: to a shell, a path, a template, a parser, a terminal. Each would make `canary`, or a mess."""

from __future__ import annotations

ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e\r\n"
PAYLOADS = (
    ESCAPE, "$(mkdir canary)", "`mkdir canary`", "; mkdir canary", "| mkdir canary", "&& mkdir canary",
    "\nmkdir canary",
    "${oc.env:HOME}", "${oc.decode:x}", "_target_=os.mkdir", "../../canary", "/etc/passwd", "%s%n%x", "{0.__class__}",
    "=cmd|' /C calc'!A0", "\u202egnp", "x" * 5000, "~/canary", "*", "-rf", "!!python/object/apply:os.mkdir [canary]",
    "\udcff", "\x00", "'\"", "<script>",
)  # fmt: skip


def as_file_name(text: str) -> str:
    """As much of the text as can be a file's name."""
    return text.replace("/", "_").replace("\0", "_")[:60]
