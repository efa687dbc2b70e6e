# From raw images and captions to trained, evaluated and ensembled 3SHNet retrieval models.
# WHAT is computed: config.yaml (settings/ checks it). WHERE and HOW: profiles/.
import os

from snakemake.utils import min_version

min_version("9.0")


# A configuration given by --configfile stands alone; merged with the default it would drag the default's datasets along.
# Started from another folder, that folder's config.yaml counts before the repository's.
DEFAULT_CONFIG = "config.yaml"
if not os.path.exists(DEFAULT_CONFIG):
    DEFAULT_CONFIG = f"{workflow.basedir}/config.yaml"


include: "rules/common.smk"


wildcard_constraints:
    dataset=alternatives(SETTINGS.datasets),
    feature=alternatives(FEATURES),
    shard=r"\d+",
    run=alternatives(SETTINGS.runs),
    testset=alternatives(SETTINGS.testsets),
    ensemble=alternatives(SETTINGS.ensembles),
    search=alternatives(SETTINGS.search),
    published=PLAN.published,


rule all:
    "Everything that the configuration asks for: features in use, scores, tables, searches, the report."
    input:
        PLAN.used_stores(),
        PLAN.all_metrics(),
        PLAN.all_tables(),
        PLAN.all_searches(),
        kept(layout.report(RESULTS)),


include: "rules/targets.smk"
include: "rules/index.smk"
include: "rules/published.smk"
include: "rules/features.smk"
include: "rules/exchange.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/search.smk"
include: "rules/report.smk"


checked(check_targets, sys.argv, [rule.name for rule in workflow.rules])
