"""What is shown of jobs that failed."""

from rules.failed import LINES, show_failures


def test_the_end_of_each_failed_log_is_shown_once(tmp_path, capsys):
    long, short = tmp_path / "long.log", tmp_path / "short.log"
    long.write_text("".join(f"line {n}\n" for n in range(100)))
    short.write_text("error: the disk is full\n")
    mention = "    log: {} (check log file(s) for error details)\n"
    snakemake = tmp_path / "snakemake.log"
    snakemake.write_text(
        f"rule a:\n    log: {tmp_path}/fine.log\n" + mention.format(long) + mention.format(f"{long}, {short}") + "end\n"
    )
    (tmp_path / "fine.log").write_text("all is well\n")
    show_failures([str(snakemake)])
    shown = capsys.readouterr().err
    assert shown.count("line 99\n") == 1 and f"line {99 - LINES}\n" not in shown
    assert f"{long}, the last {LINES} of 100 lines:\n" in shown
    assert f"{short}:\n    error: the disk is full\n" in shown and "all is well" not in shown


def test_without_a_log_nothing_is_said(tmp_path, capsys):
    show_failures([])
    show_failures([str(tmp_path / "missing.log")])
    assert capsys.readouterr().err == ""
