"""The command `reft`: finds the libtorch of this Python's torch, and becomes the program.

torch is found and not imported: importing it takes seconds, and the program needs its libraries alone.
"""

import os
import sys
from importlib import metadata, util
from pathlib import Path

NEEDED = "2.11"
PROGRAM = Path(__file__).parent / "bin" / "reft"
ADVICE = f"install it with: {sys.executable} -m pip install 'torch=={NEEDED}.*'"


def libraries():
    """The folder of the libraries of this Python's torch, once it is known that they are the needed ones."""
    spec = util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: found no torch, expected torch {NEEDED}, whose libraries reft computes with; {ADVICE}")
    package = Path(next(iter(spec.submodule_search_locations)))
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        found = None  # built from source: the program asks the libraries themselves
    if found is not None and found.split("+")[0].split(".")[:2] != NEEDED.split("."):
        sys.exit(f"error: found torch {found} in {package}, expected torch {NEEDED}; {ADVICE}")
    folder = package / "lib"
    if not (folder / "libtorch_cpu.so").is_file():
        sys.exit(f"error: found no libtorch_cpu.so in {folder}, expected that of torch {NEEDED}; {ADVICE}")
    return folder


def main():
    """Becomes the program, with this process's arguments."""
    # The libraries' folder goes into the environment, so that links and separate folders of packages work too. The program's own run path
    # is right only if both packages are in one folder.
    before = os.environ.get("LD_LIBRARY_PATH")
    paths = [str(libraries())] + ([before] if before else [])
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(paths)}
    os.execve(PROGRAM, ["reft", *sys.argv[1:]], environment)
