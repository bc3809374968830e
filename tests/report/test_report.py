import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from etils import epath
from made_up_run import make_run, write_lines

from pretrain.configs.runs.smoke import run as smoke
from pretrain.report import write_report
from pretrain.report.page import embedded, plotly


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "smoke")


def page(run) -> str:
    """The report without plotly.js, whose five megabytes would hide everything in a failure."""
    return write_report(run).read_text().replace(plotly(), "PLOTLY")


def drawn(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


class Elements(HTMLParser):
    """Element names, and what a reader sees of the page in one text."""

    def __init__(self, html: str):
        super().__init__()
        self.names, self.words, self._skipped = [], [], 0
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self._skipped += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._skipped -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._skipped:
            self.words.append(data)


def seen(run) -> str:
    return Elements(page(run)).text


def test_the_report_is_one_file_in_the_run_directory(run):
    assert write_report(run) == run / "report.html"
    assert [p.name for p in run.iterdir() if "report" in p.name] == ["report.html"]


def test_the_page_opens_offline(run):
    html = write_report(run).read_text()
    assert html.count("function(") > 1000, "plotly.js is inside"
    assert html.count(plotly()) == 1
    assert not re.search(r"""(src|href)\s*=\s*\\?["'`]?\s*(https?:)?//""", html)
    assert "@import" not in html
    assert "default-src 'none'" in html, "and the browser refuses every address"
    assert not re.search(r"https?:", page(run).replace("PLOTLY", ""))


def test_the_library_is_unchanged_but_for_its_addresses():
    from plotly.offline import get_plotlyjs

    assert 0 <= len(get_plotlyjs()) - len(plotly()) < 1000


def test_no_element_of_the_template_is_left_unfilled(run):
    assert not re.search(r"\$\{\w+\}", page(run).split("<script")[0])


def test_the_head_says_what_ran_and_how_it_went(run):
    text = seen(run)
    for fact in (
        "smoke finished",
        "1.10B parameters · 31.5M tokens · 0.0286 tokens per parameter · 8 × TPU v5p in 2 processes",
        "60 of 60, 100%",
        "d32ca8d4c1",
        "jax 0.10.2",
        "1,100,048,384",
        "Wall time 3m42s",
        "at step 40; 10 logged lines were trained once more",
        "Started 2025-11-24 08:00 UTC",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "running"),
        (["start"], "running"),
        (["start", "done"], "finished"),
        (["start", "failed"], "failed"),
        (["start", "preempted"], "pre-empted"),
        (["start", "preempted", "resume"], "running"),
        (["start", "interrupted"], "interrupted"),
        (["start", "failed", "resume", "evaluation", "done"], "finished"),
    ],
)
def test_the_last_session_decides_the_status(run, events, status):
    write_lines(run / "events.jsonl", [{"time": 1.8e9 + i, "kind": kind, "step": i} for i, kind in enumerate(events)])
    assert f'<span class="status {status}">{status}</span>' in page(run)


def test_a_failure_says_its_reason_first(run):
    write_lines(run / "events.jsonl", [{"time": 1.0, "kind": "failed", "step": 31, "reason": "loss is not finite"}])
    assert "Failed at step 31: loss is not finite" in seen(run)


def test_a_run_that_fell_silent_says_when_it_was_last_heard_of(run):
    write_lines(run / "events.jsonl", [{"time": 1_763_971_200.0, "kind": "start"}])
    assert "No event since 2025-11-24 08:00 UTC" in seen(run)


def test_every_axis_has_a_value_for_every_point(run):
    data = drawn(page(run))
    assert list(data["axes"]) == ["steps", "tokens", "FLOPs", "hours"]
    n = len(data["loss"]["raw"])
    assert n == 60
    for axis in data["axes"]:
        assert len(data["axes"][axis]["x"]) == n
        assert len(data["evaluations"]["x"][axis]) == len(data["evaluations"]["y"]) == 5
        assert len(data["resumes"][axis]) == 1
    assert all(len(chart["raw"]) == n for chart in data["charts"])
    assert [c["key"] for c in data["charts"]] == ["learning_rate", "grad_norm", "tokens_per_second", "mfu", "data_wait"]


def test_axes_measure_tokens_flops_and_hours(run):
    data = drawn(page(run))
    axes = {name: axis["x"] for name, axis in data["axes"].items()}
    assert axes["tokens"][-1] == 60 * 524_288
    assert axes["FLOPs"][-1] == pytest.approx(60 * 524_288 * 7.1e9)
    assert axes["hours"][-1] == pytest.approx(60 * 1.64 / 3600, rel=0.1)
    assert data["resumes"]["steps"] == [40]
    assert data["resumes"]["tokens"] == [40 * 524_288]


def test_an_evaluation_between_two_logged_steps_lies_between_them(tmp_path):
    data = drawn(page(make_run(tmp_path / "run", steps=100, every=8)))
    assert data["evaluations"]["x"]["steps"] == [20, 40, 60, 80, 100]
    assert data["evaluations"]["x"]["tokens"] == pytest.approx([s * 524_288 for s in (20, 40, 60, 80, 100)])


def test_an_axis_that_cannot_be_computed_has_no_button(tmp_path):
    run = make_run(tmp_path / "run", flops_per_token=None)
    lines = [{"step": s, "loss": 3.0 - s / 100, "tokens": s * 100} for s in range(1, 20)]
    write_lines(run / "metrics.jsonl", lines)
    html = page(run)
    assert re.findall(r'data-axis="(\w+)"', html) == ["steps", "tokens"]
    assert drawn(html)["charts"] == []


def test_a_term_that_is_switched_off_has_no_chart(run):
    lines = [{"step": s, "loss": 2.0, "z_loss": 0.0, "accuracy": s / 10} for s in range(3)]
    write_lines(run / "metrics.jsonl", lines)
    assert [c["key"] for c in drawn(page(run))["charts"]] == ["accuracy"]


def test_of_a_repeated_step_the_last_line_is_drawn(run):
    lines = [{"step": s, "loss": float(s)} for s in (1, 2, 3)] + [{"step": 3, "loss": 30.0}, {"step": 4, "loss": 40.0}]
    write_lines(run / "metrics.jsonl", lines)
    assert drawn(page(run))["loss"]["raw"] == [1, 2, 30, 40]


def test_text_from_the_run_is_never_markup(tmp_path):
    attack = "</script></textarea><script>alert(1)</script><img src=x onerror=alert(2)>"
    config = replace(smoke(), evals=replace(smoke().evals, prompts=(attack,)))
    run = make_run(
        tmp_path / "run <b>",
        config,
        command=["pretrain", attack],
        versions={attack: attack},
        code={"commit": attack},
        preset=attack,
    )
    (run / "samples" / "60.md").write_text(attack)
    write_lines(run / "events.jsonl", [{"time": 1.0, "kind": "failed", "step": 1, "reason": attack}])
    html = page(run)
    elements = Elements(html)
    assert "<script>alert" not in html
    assert elements.names.count("script") == 3
    assert "img" not in elements.names
    assert "b" not in elements.names
    assert elements.text.count("<script>alert(1)</script>") >= 6, "but it can be read"


def test_json_inside_the_page_cannot_end_its_element():
    assert "<" not in embedded({"a": "</script><!--"})
    assert json.loads(embedded({"a": "</script>"})) == {"a": "</script>"}


def test_a_folder_with_nothing_in_it_has_a_report_that_says_so(tmp_path):
    text = seen(epath.Path(tmp_path))
    for sentence in (
        "not started",
        "run.json is missing",
        "metrics.jsonl has no line yet",
        "events.jsonl has no line yet",
        "No evaluation yet",
        "No samples yet",
        "run.json has no config",
        "run.json has no command line",
    ):
        assert sentence in text


def test_a_torn_last_line_is_left_out_and_named(run):
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 61, "lo')
    html = page(run)
    assert len(drawn(html)["loss"]["raw"]) == 60
    assert "metrics.jsonl: line 71 is torn and was left out" in Elements(html).text


def test_a_loss_that_is_not_finite_is_a_gap_and_named(run):
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "nan"}, {"step": 3, "loss": 2.5}])
    html = page(run)
    assert drawn(html)["loss"]["raw"] == [2.0, None, 2.5]
    assert "The loss was not finite at step 2." in Elements(html).text


def test_a_damaged_run_json_does_not_hide_the_curves(run):
    (run / "run.json").write_text('{"config": ')
    html = page(run)
    assert "run.json cannot be read" in Elements(html).text
    assert len(drawn(html)["loss"]["raw"]) == 60


def test_mfu_is_left_out_where_the_peak_is_unknown(tmp_path):
    hardware = {"platform": "cpu", "device_kind": "cpu", "devices": 1, "processes": 1}
    html = page(make_run(tmp_path / "run", hardware=hardware))
    assert "mfu" not in [c["key"] for c in drawn(html)["charts"]]
    assert "1 × cpu" in Elements(html).text


def test_evaluations_are_a_table_with_the_best_marked(run):
    html = page(run)
    table = html[html.index('id="evaluations"') : html.index('id="samples"')]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", table)][1:]
    assert [row[0] for row in rows] == ["60", "48", "36", "24", "12"]
    assert table.count("<tr class=best>") == 1
    assert all(len(row) == 5 for row in rows)


def test_samples_are_shown_newest_first_and_the_newest_open(run):
    html = page(run)
    part = html[html.index('id="samples"') : html.index('id="facts"')]
    assert re.findall(r"<details( open)?><summary>(.*?)</summary>", part) == [(" open", "Step 60"), ("", "Step 30")]
    assert (
        part.count('<div class="sample"><span>def </span>close(self):\n    return &lt;b&gt;None&lt;/b&gt;</div>') == 2
    )
    assert part.count('<div class="sample"><span>import </span>os```</div>') == 2


def test_samples_of_another_form_are_shown_as_they_are(run):
    (run / "samples" / "60.md").write_text("Once upon\n```\na time ⟨")
    assert "Once upon ``` a time" in seen(run)


def test_the_command_can_be_pasted_into_a_shell(run):
    text = seen(run)
    assert "git checkout d32ca8d4c1 pretrain train runs.smoke --run 'runs/a run' --steps 60" in text


def test_a_run_started_as_a_module_is_repeated_as_one(tmp_path):
    run = make_run(tmp_path / "run", command=["/clone/pretrain/__main__.py", "train", "runs.smoke"], code={})
    assert "python -m pretrain train runs.smoke" in seen(run)


def test_the_config_is_shown_whole(run):
    text = seen(run)
    for value in ("optimizer OptimizerConfig", "peak_lr 0.003", "kv_heads 2", "vocab_size 2,048", "theta 10000.0"):
        assert value in text


def test_the_config_is_compared_with_its_preset(tmp_path):
    preset = smoke()
    mine = replace(preset, seed=7, optimizer=replace(preset.optimizer, peak_lr=1e-3))
    text = seen(make_run(tmp_path / "a", mine, preset="runs.smoke"))
    assert "Field runs.smoke This run optimizer.peak_lr 0.003 0.001 seed 0 7" in text
    assert "Nothing differs from runs.smoke." in seen(make_run(tmp_path / "b", preset, preset="runs.smoke"))
    assert "run.json names no preset" in seen(make_run(tmp_path / "c"))


def test_writing_a_report_runs_no_code_of_the_run(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("raise SystemExit('ran')")
    assert "which is no preset: nothing to compare with" in seen(make_run(tmp_path / "a", preset=str(mine)))


def test_what_a_resume_changed_is_named(run):
    changed = {"time": 1.8e9, "kind": "changed", "step": 40, "what": "mesh.fsdp: 4 -> 8 (safe)"}
    write_lines(run / "events.jsonl", [changed])
    assert "Changed later step 40: mesh.fsdp: 4 -> 8 (safe)" in seen(run)
