import numpy as np
import pandas as pd
import pytest
import torch

import mechkit as mk

SITES = [
    "L0.H0.z@-1", "L0.H1.z@-1", "L10.H0.z@subject[-1]", "L2.mlp_post@2:5#7", "L8.resid_pre[sae/a]@2#4812",
    "L5.H1.pattern@9<-4", "embed", "L1.resid_mid@subject",
]  # fmt: skip
SCORES = torch.tensor([[1.0, 3], [-5, -3], [0.5, 0.5], [2, -2], [0, 1], [-1, 0], [9, 1], [torch.nan, 1]])


def result(sites=SITES, scores=SCORES, **more):
    return mk.Result.of_sites([mk.Site.parse(site) for site in sites], scores, "logits", {"verb": "test"}, **more)


def heads(layers=2, n_heads=3, unit="logits"):
    sites = [mk.Site("z", layer, head, -1) for layer in range(layers) for head in range(n_heads)]
    return mk.Result.of_sites(sites, torch.arange(float(layers * n_heads))[:, None], unit)


def edges():
    pairs = [mk.Edge.parse("L0.H1.z -> L1.H0.q"), mk.Edge.parse("L0.mlp_out@subject -> L1.H1.k@-1")]
    return mk.Result.of_edges(pairs, torch.tensor([[1.0], [-2.0]]), "nats", gap=torch.tensor([4.0]))


def test_rows_give_back_their_sites_and_edges():
    assert [str(site) for site in result().sites] == result().labels == SITES
    assert edges().labels == ["L0.H1.z -> L1.H0.q", "L0.mlp_out@subject -> L1.H1.k@-1"]
    assert edges().edges[0] == mk.Edge.parse("L0.H1.z -> L1.H0.q")
    with pytest.raises(TypeError, match=r"are edges; take \.edges"):
        _ = edges().sites
    with pytest.raises(TypeError, match=r"are sites; take \.sites"):
        _ = result().edges


def test_top_is_largest_in_size_first_and_missing_numbers_last():
    assert result().top(3).labels == ["embed", "L0.H1.z@-1", "L0.H0.z@-1"]
    assert result().top(100).labels[-1] == "L1.resid_mid@subject"
    assert result().top(2, by=lambda scores: -scores).labels == ["L0.H1.z@-1", "L5.H1.pattern@9<-4"]
    assert torch.equal(result().top(2).scores, SCORES[[6, 1]])
    assert len(result().top(0)) == 0


def test_where_keeps_the_rows_with_these_parts():
    assert result().where(name="z").labels == SITES[:3]
    assert result().where(layer=[0, 10], head=0).labels == ["L0.H0.z@-1", "L10.H0.z@subject[-1]"]
    assert result().where(layer=range(1, 3)).labels == ["L2.mlp_post@2:5#7", "L1.resid_mid@subject"]
    assert result().where(layer=np.int64(10)).labels == ["L10.H0.z@subject[-1]"]
    assert result().where(pos="subject").labels == ["L1.resid_mid@subject"]
    assert result().where(layer=None).labels == ["embed"]
    assert result().where(lambda rows: rows["index"] > 100).labels == ["L8.resid_pre[sae/a]@2#4812"]
    assert edges().where(sender_name="z").labels == ["L0.H1.z -> L1.H0.q"]
    assert torch.equal(result().where(name="z").scores, SCORES[:3])
    with pytest.raises(ValueError, match=r"rows have no 'haed'; they have layer, head, name"):
        result().where(haed=1)


def test_grid_puts_each_score_at_its_labels():
    grid = heads().grid("layer", "head")
    assert grid.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (grid.rows, grid.columns, grid.names, grid.unit) == ((0, 1), (0, 1, 2), ("layer", "head"), "logits")
    assert np.asarray(grid).shape == (2, 3)
    assert grid.frame().loc[1, 2] == 5
    assert "unit: logits" in repr(grid)
    assert [type(label) for label in grid.rows] == [int, int]


def test_grid_leaves_missing_rows_empty_and_sorts_numbers_only():
    mixed = result(["L2.z@5", "L1.z@subject", "L1.z@5"], torch.ones(3, 1)).grid("layer", "pos")
    assert (mixed.rows, mixed.columns) == ((1, 2), (5, "subject"))
    assert np.isnan(mixed.values).tolist() == [[False, False], [False, True]]
    assert result(["embed", "L0.attn_out"], torch.ones(2, 1)).grid("layer", "name").rows == (None, 0)


def test_grid_needs_labels_that_name_one_row():
    with pytest.raises(ValueError, match=r"several rows share the same layer and name; narrow them with where"):
        heads().grid("layer", "name")
    with pytest.raises(ValueError, match="rows have no 'heads'"):
        heads().grid("layer", "heads")


def test_mean_has_one_column_and_the_mean_gap():
    mean = result(gap=torch.tensor([2.0, 4.0])).mean()
    assert mean.scores[:3].tolist() == [[2], [-4], [0.5]]
    assert mean.gap.tolist() == [3]
    assert mean.labels == SITES


def test_frame_holds_the_parts_that_are_used_and_every_prompt():
    frame = result(SITES[:2], SCORES[:2]).frame()
    assert list(frame.columns) == ["layer", "head", "name", "pos", "score", "prompt_0", "prompt_1"]
    assert frame["score"].tolist() == [2, -4]
    assert frame["prompt_1"].tolist() == [3, -3]
    assert list(heads().frame().columns)[-1] == "score"


@pytest.mark.parametrize("name", ["heads.parquet", "heads", "heads.v1", "x.safetensors"])
def test_a_saved_result_reads_back_the_same(tmp_path, name):
    extra = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    gap = torch.tensor([1.0, 2.0])
    saved = result(scores=extra, axes=("row", "prompt", "sample"), gap=gap)
    back = mk.Result.load(saved.save(tmp_path / name))
    assert torch.equal(back.scores, extra)
    assert torch.equal(back.gap, gap)
    assert (back.sites, back.unit, back.meta, back.axes) == (saved.sites, saved.unit, saved.meta, saved.axes)
    pd.testing.assert_frame_equal(back.rows, saved.rows)


def test_saved_edges_read_back_the_same(tmp_path):
    back = mk.Result.load(edges().save(tmp_path / "edges.parquet"))
    assert back.edges == edges().edges
    assert back.gap.tolist() == [4]


def test_results_of_like_names_do_not_share_their_scores(tmp_path):
    first, second = heads().save(tmp_path / "heads.v1"), heads(3).save(tmp_path / "heads.v2")
    assert (len(mk.Result.load(first)), len(mk.Result.load(second))) == (6, 9)


def test_what_is_no_saved_result_is_an_error_naming_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        mk.Result.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(ValueError, match=r"text.parquet' is not a saved Result"):
        mk.Result.load(tmp_path / "text.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet' is not a saved Result: its table carries no unit"):
        mk.Result.load(tmp_path / "other.parquet")
    path = heads().save(tmp_path / "heads.parquet")
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"heads\.safetensors"):
        mk.Result.load(path)


def test_scores_of_another_save_are_an_error(tmp_path):
    path = heads().save(tmp_path / "a.parquet")
    other = heads(unit="nats").top(6).save(tmp_path / "b.parquet")
    other.with_suffix(".safetensors").rename(path.with_suffix(".safetensors"))
    with pytest.raises(ValueError, match="does not hold the scores of"):
        mk.Result.load(path)


def test_what_json_cannot_hold_is_an_error_before_anything_is_written(tmp_path):
    bad = mk.Result.of_sites([mk.Site("embed")], torch.ones(1, 1), "logits", {"when": object()})
    with pytest.raises(TypeError):
        bad.save(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_repr_is_a_table_with_unit_footer_and_whole_labels():
    shown = repr(result(gap=torch.tensor([2.0, 4.0])))
    lines = shown.splitlines()
    assert lines[0].split() == ["site", "logits"]
    assert lines[1].split() == ["L0.H0.z@-1", "+2"]
    assert "L8.resid_pre[sae/a]@2#4812" in shown  # square brackets are no markup
    assert lines[-2:] == ["mean over 2 prompts", "gap (full recovery): +3"]
    assert "... 30 more rows" in repr(heads(10, 5))
    assert repr(edges()).splitlines()[0].split() == ["edge", "nats"]


def test_html_escapes_names_and_units():
    site = mk.Site("resid_pre", 0, index=1, basis="a&b")
    html = mk.Result.of_sites([site], torch.ones(1, 1), "<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in html
    assert "a&amp;b" in html


def test_sites_of_a_result_feed_the_next_question(model):
    prompts = mk.Prompts.from_tokens([[1, 2, 3]], [4], [5])
    found = mk.expand(model, "L*.H*.z@-1")
    swept = mk.sweep(model, prompts, [[mk.Zero(site)] for site in found], mk.logit_diff)
    best = mk.Result.of_sites(found, swept.scores, swept.unit).top(2)
    assert mk.activations(model, prompts, best.sites)[best.sites[0]].shape == (1, 8)
    assert mk.expand(model, best.sites) == best.sites


def test_plots_are_plotly_figures():
    import plotly.graph_objects as go

    figures = [
        heads().plot(title="heads"),
        heads().grid("layer", "head").plot(),
        edges().plot(),
        result().top(3).plot(),
    ]
    assert all(isinstance(figure, go.Figure) and figure.data for figure in figures)


def test_scores_that_do_not_match_the_rows_are_an_error():
    with pytest.raises(ValueError, match=r"scores have shape \[2, 1\] for 1 rows"):
        mk.Result.of_sites([mk.Site("embed")], torch.ones(2, 1), "logits")


def test_a_hundred_thousand_rows_are_ranked_without_making_their_sites():
    import time

    start = time.process_time()
    rows = heads(1, 1).rows
    many = mk.Result(rows.loc[[0] * 100_000].reset_index(drop=True), torch.arange(1e5)[:, None], "logits")
    assert len(many.top(5).sites) == 5
    assert repr(many)
    assert time.process_time() - start < 10  # takes a tenth of a second; making every site takes many


SEVERAL = {"metrics": ["logit_diff", "logprob"], "units": ["logits", "nats"]}


def several():
    scores = torch.tensor([[[1.0, -3], [3, -5]], [[-9, 1], [-7, 1]]])  # [row, prompt, metric]
    sites = [mk.Site("z", 0, head, -1) for head in range(2)]
    gap = torch.tensor([[2.0, 10], [4, 30]])
    return mk.Result.of_sites(
        sites, scores, "logits, nats", {"verb": "test", **SEVERAL}, axes=("row", "prompt", "metric"), gap=gap
    )


def test_one_of_several_metrics_is_a_result_of_its_own():
    one = several().metric("logprob")
    assert one.scores.tolist() == [[-3, -5], [1, 1]]
    assert (one.unit, one.axes, one.gap.tolist()) == ("nats", ("row", "prompt"), [10, 30])
    assert one.meta == {"verb": "test", "metrics": ["logprob"], "units": ["nats"]}
    assert one.top(1).labels == ["L0.H0.z@-1"]
    assert several().metric("logit_diff").top(1).labels == ["L0.H1.z@-1"]
    assert one.metric("logprob") is one
    with pytest.raises(ValueError, match="no metric 'loss' in this result; it holds logit_diff, logprob"):
        several().metric("loss")
    with pytest.raises(ValueError, match="it holds one without a name"):
        heads().metric("loss")


def test_metrics_are_never_averaged_with_each_other():
    for call in (lambda: several().top(1), lambda: several().grid("layer", "head"), lambda: several().plot()):
        with pytest.raises(ValueError, match=r"holds the metrics logit_diff, logprob; choose one: \.metric"):
            call()
    frame = several().frame()
    assert (frame["logit_diff"].tolist(), frame["logprob"].tolist()) == ([2, -8], [-4, 1])
    assert several().mean().scores.tolist() == [[[2, -4]], [[-8, 1]]]
    assert several().mean().gap.tolist() == [[3, 20]]
    lines = repr(several()).splitlines()
    assert lines[1].split() == ["L0.H0.z@-1", "+2", "-4"]
    assert lines[-1] == "gap (full recovery): +3, +20"
    assert "logprob (nats)" in lines[0]
    assert "logprob (nats)" in several()._repr_html_()


def test_several_metrics_are_saved_and_read_back(tmp_path):
    back = mk.Result.load(several().save(tmp_path / "several.parquet"))
    assert torch.equal(back.gap, several().gap)
    assert torch.equal(back.metric("logprob").scores, several().metric("logprob").scores)


GROUPS = [["L0.H0.z@-1", "L0.H1.z@-1"], ["L2.mlp_post@2:5#7"], ["L0.attn_out", "L8.resid_pre[sae + b]@2#4812", "embed"]]


def grouped():
    sites = [[mk.Site.parse(site) for site in group] for group in GROUPS]
    return mk.Result.of_groups(sites, torch.tensor([[1.0], [-2], [3]]), "logits")


def test_rows_can_be_groups_of_sites(tmp_path):
    for found in (grouped(), mk.Result.load(grouped().save(tmp_path / "groups.parquet"))):
        assert found.labels == [" + ".join(group) for group in GROUPS]
        assert [[str(site) for site in group] for group in found.groups] == GROUPS
        assert found.top(1).groups == [grouped().groups[2]]
        assert found.where(layer=0, name="z").labels == ["L0.H0.z@-1 + L0.H1.z@-1"]  # parts its sites share
        assert found.rows["head"].isna().tolist() == [True, True, True]
    with pytest.raises(TypeError, match=r"are groups of sites; take \.groups"):
        _ = grouped().sites
    assert [str(site) for site in grouped().where(layer=2).sites] == GROUPS[1]
    assert result().groups == [[site] for site in result().sites]
    assert "L0.H0.z@-1 + L0.H1.z@-1" in repr(grouped())
    assert grouped().plot().data
    with pytest.raises(TypeError, match=r"are edges; take \.edges"):
        _ = edges().groups


def test_an_interval_is_that_of_a_loop_over_resampled_prompts():
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    low, high = result(SITES[:3], scores).interval(level=0.9, n=500, seed=4)
    drawn = torch.randint(20, (500, 20), generator=torch.Generator().manual_seed(4))
    means = torch.stack([scores[:, rows].double().mean(1) for rows in drawn], 1)
    ends = torch.quantile(means, torch.tensor([0.05, 0.95]).double(), dim=1)
    assert torch.allclose(torch.stack([low, high]).double(), ends, atol=1e-6)  # given back in float32
    again = result(SITES[:3], scores).interval(level=0.9, n=500, seed=4)
    assert torch.equal(torch.stack(again), torch.stack([low, high]))


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    scores = 1 + torch.randn(2000, 40, generator=torch.Generator().manual_seed(1))
    low, high = mk.Result(heads(1, 1).rows.loc[[0] * 2000].reset_index(drop=True), scores, "logits").interval(0.9)
    covered = ((low < 1) & (high > 1)).double().mean()
    assert 0.85 < covered < 0.92  # percentile intervals are a little narrow on 40 prompts


def test_an_interval_needs_prompts_to_resample():
    with pytest.raises(ValueError, match=r"needs two prompts or more.*there are 1 prompts"):
        heads().interval()
    with pytest.raises(ValueError, match="level is 95"):
        result().interval(95.0)
