# Start-up: the settings are checked, and PLAN says what each rule needs. No rules here.
import shlex
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# In front of all else: the folder that Snakemake is started from may hold packages and files of the same names.
REPOSITORY = str(workflow.basedir)
sys.path.insert(0, REPOSITORY)

from core import layout
from core.console import UserError
from core.devices import gpu_present
from core.features import FEATURES
from core.jobs import end_jobs_on, lead_jobs
from core.machine import (
    remember_command,
    remember_force,
    remember_images_alone,
    use_this_interpreter,
)
from published.download import LOCK_FILE
from rules.check import idle, leaks
from rules.checkpoints import alternatives
from rules.failed import show_failures, show_notes
from rules.plan import Plan
from rules.targets import check_targets, of_images_alone
from rules.times import forget_records, note_times, restore_times
from settings import check_readable, load_settings
from settings.given import values_of

use_this_interpreter(REPOSITORY)
lead_jobs()
remember_command(
    workflow.overwrite_configfiles,
    workflow.main_snakefile,
    # On a cluster Snakemake hands it on in a form that nobody reads.
    values_of(sys.argv, "--config", "-C") if workflow.is_main_process else [],
)
# Jobs on a cluster are called with --force, whatever the user said.
if workflow.is_main_process:
    remember_force(sys.argv)
    remember_images_alone(of_images_alone(sys.argv))
CONFIGFILES = workflow.overwrite_configfiles or [DEFAULT_CONFIG]


def kept(path):
    """A file or folder below RESULTS as rules name it."""
    return storage.s3(path) if PLAN.remote else path


def kept_folder(path):
    """A folder below RESULTS that is a rule's output."""
    return storage.s3(path) if PLAN.remote else directory(path)


def checked(step, *arguments, **options):
    """The result of a step of the start-up; a mistake of the user's ends it with its message alone, not with our file and line."""
    try:
        return step(*arguments, **options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if not workflow.overwrite_configfiles:
    checked(check_readable, DEFAULT_CONFIG)

    configfile: DEFAULT_CONFIG


PLAN = Plan(
    checked(
        load_settings,
        config,
        files=CONFIGFILES,
        given=workflow.config_settings.config,
        words=sys.argv,
    ),
    lock=str(Path(CONFIGFILES[0]).parent / LOCK_FILE),
    # Unknown on a cluster's head node (`workflow.cores` would raise); its profile says how many threads a job gets.
    cores=workflow.resource_settings.cores or 1,
    kept=kept,
    ancient=ancient,
)
checked(PLAN.verify_published)
if not workflow.deployment_settings.deployment_method:
    checked(PLAN.verify_engines)
for name in checked(PLAN.kept_runs):
    print(
        f"note: runs.{name}: {layout.run_folder(PLAN.results, name)} holds a run that somebody put there; it is scored as it is and not trained",
        file=sys.stderr,
    )
for name in PLAN.pooled_cells():
    print(
        f"note: runs.{name} was trained on all cells of its CNN's map, and grid: {PLAN.settings.features.grids.grid} pools them: its scores are not "
        "those that were published; write features.grids.grid: native",
        file=sys.stderr,
    )

for note in (
    (*idle(PLAN.settings), *leaks(PLAN.settings), *PLAN.unfamiliar())
    if workflow.is_main_process
    else ()
):
    print(f"note: {note}", file=sys.stderr)

SETTINGS, RESULTS, WORK = PLAN.settings, PLAN.results, PLAN.work
STARTED = time.time()
# Before Snakemake looks at any; a job on a cluster, which reads this file too, must not.
if workflow.is_main_process and not PLAN.remote:
    forget_records(RESULTS, values_of(sys.argv, "--cleanup-metadata", "--cm"))
    restore_times(RESULTS)


def note_made():
    """When jobs have ended: what a later start of copied results is to find."""
    if not PLAN.remote:
        jobs = workflow.dag.jobs
        note_times(
            RESULTS,
            [file for job in jobs for file in job.products(include_logfiles=False)],
        )


# A job asks for a GPU where this machine has one; cluster profiles ask by `set-resources`.
GPUS_PER_JOB = int(gpu_present())

if PLAN.remote and not find_spec("snakemake_storage_plugin_s3"):
    print(
        f"error: results: {RESULTS} needs more packages: pip install --group s3",
        file=sys.stderr,
    )
    sys.exit(1)
