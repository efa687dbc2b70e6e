"""The benchmark of UPSNet beside Panoptic FPN runs, on small images."""

from benchmarks.upsnet import main


def test_it_runs(capsys):
    main(["--images", "1", "--repetitions", "1", "--side", "64"])
    printed = capsys.readouterr().out
    assert (
        "upsnet_r50, source: semantic" in printed and "upsnet_r50, source: panoptic" in printed and ">= 0.83" in printed
    )
