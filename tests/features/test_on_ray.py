"""A scan on Ray gives the index of one process. Skipped where Ray is not installed; it is an extra."""

import sys

import numpy as np
import pytest

from mechkit.features import scan
from mechkit.features.corpus import tokenise
from mechkit.features.on_ray import Worker
from mechkit.features.settings import settings_for
from mechkit.features.sources import documents
from tests.features.tiny import assert_index_is, contents, loop, tiny_sae, token_rows

KEPT = {"top": 3, "sample": 6, "window": (2, 1), "cofiring": 10_000, "keep": "all", "batch": 48, "shard": 60}


@pytest.mark.filterwarnings("ignore")  # Ray warns of its own settings
def test_two_workers_give_the_index_of_one_process(model, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is an extra, mechkit[ray]")
    sae, rows = tiny_sae(steps=2), token_rows()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        index = scan(model, sae, rows, tmp_path / "ray", **KEPT, engine="ray", workers=2)
    finally:
        ray.shutdown()
    scan(model, sae, rows, tmp_path / "local", **KEPT)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert_index_is(index, loop(model, sae, rows, **{k: KEPT[k] for k in ("top", "sample", "window", "cofiring")}))


def test_two_workers_that_share_the_stretches_give_the_index_of_one_process(model, tmp_path, monkeypatch):
    """Without Ray: each of two workers scans every other stretch, and the parts arrive in another order."""
    from mechkit.features import on_ray

    def shared(model, saes, rows, stretches, settings, workers):
        made = [Worker((model, saes), rows.tokens, rows.starts, settings) for _ in range(workers)]
        for i, number in enumerate(reversed(stretches)):
            one = stretches[number]
            yield on_ray.Done(number, made[i % workers].part(one), len(one))

    monkeypatch.setattr(on_ray, "scanned_on_ray", shared)
    sae, rows = tiny_sae(steps=2), token_rows()
    scan(model, sae, rows, tmp_path / "shared", **KEPT, engine="ray", workers=2)
    scan(model, sae, rows, tmp_path / "local", **KEPT)
    assert contents(tmp_path / "shared") == contents(tmp_path / "local")


def test_ray_that_is_not_there_is_said(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mechkit\[ray\]'"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", **KEPT, engine="ray")
    assert not (tmp_path / "index/manifest.json").exists()


def test_an_engine_that_is_not_known_is_said(model, tmp_path):
    with pytest.raises(ValueError, match="engine is one of local, ray, not 'spark'"):
        scan(model, tiny_sae(), token_rows(), tmp_path / "index", engine="spark")


def test_a_worker_that_is_asked_again_gives_the_same(model, tmp_path):
    sizes = {key: KEPT[key] for key in ("keep", "top", "sample", "window", "cofiring", "shard", "batch")}
    sae = tiny_sae(steps=2)
    settings = settings_for(model, {"one": sae}, None, None, None, **sizes)
    rows = tokenise(model, documents(token_rows()), tmp_path, settings.context, settings.bos)
    worker = Worker((model, {"one": sae}), rows.tokens, rows.starts, settings)
    batch = {"number": np.array([4]), "first": np.array([3]), "last": np.array([9])}
    first, again = worker(batch), worker(batch)
    assert first["number"].tolist() == [4]
    assert first["raw"] == again["raw"] == [worker.part(range(3, 9))]
