"""The probes run, answer with numbers, and are logged."""

import re
from pathlib import Path

import pytest

from attractorlab import tasks
from attractorlab.probes import add_to_log, run_probe

PROBES = sorted((Path(__file__).parents[1] / "probes").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_the_probe_answers_its_question_with_numbers(path, monkeypatch):
    load = tasks.load

    def fewer(*args, rows, **options):  # as many puzzles as a test has time for; the log holds the outcome on all
        return load(*args, rows=slice(0, min(rows.stop, 40)), **options)

    monkeypatch.setattr(tasks, "load", fewer)
    outcome = run_probe(path)
    assert outcome.question.endswith("?") and re.search(r"\d", outcome.answer) and outcome.findings
    assert all(one.n > 0 for one in outcome.findings)


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_its_outcome_is_in_the_log(path):
    assert f" {path.stem}\n" in (path.parent / "LOG.md").read_text()


def test_an_outcome_is_added_to_the_log_below_the_others(tmp_path):
    path = tmp_path / "one.py"
    path.write_text("QUESTION = 'Is it?'\n\n\ndef run():\n    return 'It is 1.', []\n")
    for _ in range(2):
        add_to_log(path, run_probe(path), command="attractorlab probe one")
    text = (tmp_path / "LOG.md").read_text()
    assert text.startswith("# Log of the probes") and text.count("It is 1.") == 2


def test_a_file_that_is_no_probe_is_refused(tmp_path):
    (tmp_path / "not.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"no QUESTION and run\(\).*defines both.*Write"):
        run_probe(tmp_path / "not.py")
