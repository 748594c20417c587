"""Hold files to 500 lines and functions to 60: the limits of the house style."""

import ast
import sys
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def find_oversized(root: Path) -> list[str]:
    """Return one message for each file or function below `root` that is over its limit."""
    problems = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        num_lines = text.count("\n")
        if num_lines > MAX_FILE_LINES:
            problems.append(f"{path}: {num_lines} lines (at most {MAX_FILE_LINES})")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = _body_length(node)
                if length > MAX_FUNCTION_LINES:
                    problems.append(
                        f"{path}:{node.lineno}: {node.name} has {length} lines"
                        f" (at most {MAX_FUNCTION_LINES})"
                    )
    return problems


def _body_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring: documentation is not to be saved on."""
    body = node.body
    if ast.get_docstring(node, clean=False) is not None:
        body = body[1:]
    if not body:
        return 0
    return (node.end_lineno or node.lineno) - body[0].lineno + 1


if __name__ == "__main__":
    found = [
        message
        for folder in ("src", "tools", "benchmarks")
        for message in find_oversized(Path(folder))
    ]
    print("\n".join(found) or "every file and function is within its limit")
    sys.exit(bool(found))
