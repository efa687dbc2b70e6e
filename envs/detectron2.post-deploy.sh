#!/usr/bin/env bash
# Run by Snakemake in the environment it made from detectron2.yaml. detectron2 is on no package index, and its setup needs
# the environment's own PyTorch, hence no build isolation. The commit is the one extractors/detectron.py was tested with.
set -euo pipefail
python -m pip install --no-build-isolation 'setuptools<82' 'git+https://github.com/facebookresearch/detectron2@02b5c4e295e990042a714712c21dc79b731e8833'
