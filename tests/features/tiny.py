"""A random SAE for the tiny model, rows of tokens, and an index made by plain loops over rows, tokens and features."""

from bisect import bisect_right

import numpy as np
import torch

HOOK = "blocks.1.hook_resid_pre"


def tiny_sae(d_sae=24, hook=HOOK, seed=0, d_in=16, steps=None, **metadata):
    """A random SAE of SAELens. With `steps` its activations are whole multiples of 1/steps: many are equal."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(hook_name=hook, **metadata)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator) - (0.5 if name == "b_enc" else 0)
    if steps is not None:
        exact = sae.encode
        sae.encode = lambda x: (exact(x) * steps).round() / steps
    return sae.eval()


def token_rows(n=40, seed=0, d_vocab=30, longest=12):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, d_vocab, draw.integers(1, longest + 1)).tolist() for _ in range(n)]


def hashed(position, feature):
    """The hash of a firing, by whole numbers of Python's."""
    mask = 2**31 - 1
    x = ((position & mask) ^ (position >> 31)) * 0x2C1B3C6D & mask
    x = (x ^ (x >> 12)) * 0x297A2D39 & mask
    place = x ^ (x >> 15)
    x = (place ^ (feature * 0x9E3779B1 & mask)) * 0x2C1B3C6D & mask
    return place, x ^ (x >> 15)


@torch.no_grad()
def loop(model, sae, rows, *, top, sample, window, cofiring, ignore=(), n_best=10):
    """Every number of an index, one row, token and feature at a time."""
    firings, windows, tokens, place = [], {}, [], 0
    for number, row in enumerate(rows):
        _, cache = model.run_with_cache(
            torch.tensor([row]), names_filter=lambda name: name == sae.cfg.metadata.hook_name
        )
        x = cache[sae.cfg.metadata.hook_name]
        active = sae.encode(x.flatten(2) if sae.cfg.reshape_activations == "none" else x)[0]
        for i, token in enumerate(row):
            if token not in ignore:
                tokens.append(place + i)
                for feature in active[i].nonzero()[:, 0].tolist():
                    firings.append((feature, place + i, number, float(active[i, feature])))
                    around = range(i - window[0], i + window[1] + 1)
                    windows[feature, place + i] = [
                        float(active[j, feature]) if 0 <= j < len(row) else float("nan") for j in around
                    ]
        place += len(row)
    edges = [2.0**e * m for e in range(-20, 12) for m in (1, 1.5)]
    n = sae.cfg.d_sae
    found = {
        "histogram": np.zeros((n, 64), np.int64), "total": np.zeros(n), "n_counted": len(tokens),
        "top": [], "sample": [], "firings": firings, "windows": windows,
    }  # fmt: skip
    for feature, _, _, value in firings:
        found["histogram"][feature, max(0, bisect_right(edges, abs(value)) - 1)] += 1
        found["total"][feature] += abs(value)
    for feature in range(n):
        own = [firing[1:] for firing in firings if firing[0] == feature]
        best = {}
        for position, row, value in sorted(own, key=lambda one: (-abs(one[2]), one[0])):
            best.setdefault(row, (position, value))
        found["top"].append(list(best.values())[:top])
        drawn = sorted(own, key=lambda one: (hashed(one[0], feature)[1], one[0]))[:sample]
        found["sample"].append([(p, v) for p, _, v in sorted(drawn, key=lambda one: (-abs(one[2]), one[0]))])
    below = min(1.0, cofiring / place) * 2**31
    drawn = {position for position in tokens if hashed(position, 0)[0] < below}
    together = [{f for f, p, _, _ in firings if p == position} for position in sorted(drawn)]
    found["n_together"] = len(drawn)
    found["fired"] = [sum(f in one for one in together) for f in range(n)]
    found["cofiring"] = []
    for a in range(n):
        shared = {b: sum(a in one and b in one for one in together) for b in range(n) if b != a}
        overlap = {b: s / (found["fired"][a] + found["fired"][b] - s) for b, s in shared.items() if s}
        order = sorted(overlap, key=lambda b: (-overlap[b], b))[:n_best]
        found["cofiring"].append([(b, shared[b]) for b in order])
    return found


def assert_index_is(index, found):
    """Every stored number of an index equals the loop's."""
    arrays = index.arrays
    np.testing.assert_array_equal(arrays["histogram"], found["histogram"])
    np.testing.assert_allclose(arrays["total"], found["total"], rtol=1e-12)
    assert index.n_tokens == found["n_counted"]
    for kind in ("top", "sample"):
        for feature, wanted in enumerate(found[kind]):
            own = arrays[f"{kind}_position"][feature]
            assert own[: len(wanted)].tolist() == [position for position, _ in wanted], (kind, feature)
            assert (own[len(wanted) :] == -1).all()
            assert np.isnan(arrays[f"{kind}_value"][feature, len(wanted) :]).all()
            assert arrays[f"{kind}_value"][feature, : len(wanted)].tolist() == [value for _, value in wanted]
            for rank, (position, _) in enumerate(wanted):
                window = arrays[f"{kind}_window"][feature, rank]
                np.testing.assert_array_equal(window, np.float32(found["windows"][feature, position]))
    np.testing.assert_array_equal(arrays["cofiring_n"], [*found["fired"], found["n_together"]])
    for feature, wanted in enumerate(found["cofiring"]):
        padding = [-1] * (10 - len(wanted))
        assert arrays["cofiring_feature"][feature].tolist() == [other for other, _ in wanted] + padding
        assert arrays["cofiring_shared"][feature].tolist() == [n for _, n in wanted] + [0] * len(padding)


def contents(folder):
    """The bytes of every file of an index that the manifest names, by name, and the manifest's own."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", "labels.sqlite")
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
