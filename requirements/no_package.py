"""The build backend of a project that is no package: `pip install .` ends with what to do instead."""

import sys

HOW = """This is a workflow, run from its clone; there is no package to install.
  make demo                                           the environment (.venv) and a first run
  pip install --require-hashes -r requirements/runtime.txt    the dependencies alone
In Python, put the clone on the path: PYTHONPATH=/path/to/clone (or sys.path.insert(0, "/path/to/clone")), then
`from stores import open_store`."""


def _refuse(*_, **__):
    sys.exit(HOW)


get_requires_for_build_wheel = get_requires_for_build_sdist = get_requires_for_build_editable = _refuse
prepare_metadata_for_build_wheel = prepare_metadata_for_build_editable = _refuse
build_wheel = build_sdist = build_editable = _refuse
