"""One process that runs documented lines one after another, so that JAX is imported once and not for every line.

Reads a JSON request a line from stdin: {"cwd", "page", "argv" or "code"}. Answers {"code", "output"} a line.
"""

import json
import os
import sys
import tempfile
import traceback


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    namespaces: dict[str, dict] = {}
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["cwd"])
        with tempfile.TemporaryFile() as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            code = _run(request, namespaces.setdefault(request["page"], {"__name__": "__main__"}))
            sys.stdout.flush()
            sys.stderr.flush()
            output.seek(0)
            text = output.read().decode(errors="replace")
        answers.write(json.dumps({"code": code, "output": text}) + "\n")
        answers.flush()


def _run(request: dict, namespace: dict) -> int:
    try:
        if "argv" in request:
            from pretrain.cli import main as pretrain

            sys.argv = ["pretrain", *request["argv"]]
            return pretrain(request["argv"])
        sys.path.insert(0, request["cwd"])
        exec(compile(request["code"], request["page"], "exec"), namespace)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
