"""`FeatureIndex`: what `scan` wrote, as questions and answers. Arrays stay on disk; an answer reads what it needs.

index = FeatureIndex.open("features")
index.lookup("Once upon a time").top(5)
index.feature(12), index.examples(12), index.similar(12)
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechkit.features.feature import Feature
from mechkit.features.files import SAES, Arrays, Text, damaged, read_manifest
from mechkit.features.ranked import Ranked
from mechkit.features.words import is_spaceless, parted

if TYPE_CHECKING:
    from mechkit.core.result import Result
    from mechkit.features.detection import Detection
    from mechkit.features.labels import Labels
    from mechkit.features.quality import Quality
    from mechkit.features.questions import Lookup

BANDS = 4
"""Quantile bands of a feature's firings that examples come from."""


class FeatureIndex:
    """The features of one SAE on a corpus. Made by `scan`, opened by `open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], sae: str, model: Any = None) -> None:
        self.folder, self.manifest, self.sae = folder, manifest, sae
        self.arrays, self.text = Arrays(folder / SAES / sae), Text(folder)
        self._model = model

    @classmethod
    def open(cls, path: str | Path, sae: str | None = None, model: Any = None) -> "FeatureIndex":
        """The index in a folder; `sae` names one of several. Cost: no array is read.

        Raises FileNotFoundError where there is none, ValueError for a damaged one or for no such SAE.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        names = list(manifest["saes"])
        if sae is not None and sae not in names:
            raise ValueError(f"'{folder}' has no SAE '{sae}'; it has {', '.join(names)}")
        return cls(folder, manifest, sae or names[0], model)

    @property
    def saes(self) -> list[str]:
        """The SAEs that were scanned together; `open(path, sae=...)` chooses one."""
        return list(self.manifest["saes"])

    @property
    def hook(self) -> str:
        """The hook that the SAE reads."""
        return self.manifest["saes"][self.sae]["hook"]

    @property
    def n_features(self) -> int:
        """How many features the SAE has."""
        return self.manifest["saes"][self.sae]["n_features"]

    @property
    def n_tokens(self) -> int:
        """How many tokens of the corpus count."""
        return self.manifest["n_counted"]

    @cached_property
    def n_firings(self) -> np.ndarray:
        """`[feature]`: tokens on which each fires."""
        return self.arrays["histogram"].sum(1)

    @property
    def density(self) -> np.ndarray:
        """`[feature]`: share of the tokens on which each fires."""
        return self.n_firings / self.n_tokens

    @property
    def mean(self) -> np.ndarray:
        """`[feature]`: mean strength where each fires; NaN where it never does."""
        with np.errstate(invalid="ignore"):
            return self.arrays["total"] / self.n_firings

    @property
    def max(self) -> np.ndarray:
        """`[feature]`: greatest strength; NaN where it never fires. ValueError in an index without examples."""
        if self.arrays["top_value"].shape[1] == 0:
            raise ValueError("this index keeps no strongest firings; scan with top= at least 1")
        return np.abs(self.arrays["top_value"][:, 0])

    @cached_property
    def labels(self) -> "Labels":
        """What its features were called, by whom; in a file of its own beside the index."""
        from mechkit.features.labels import Labels

        return Labels(self.folder, self.sae, self.n_features)

    def __repr__(self) -> str:
        name = self.manifest["model"]["name"]
        return f"{self.n_features:,} features of {name} at {self.hook} on {self.n_tokens:,} tokens, in '{self.folder}'"

    def verify(self) -> None:
        """Raise ValueError where a file is not as it was written. Cost: one read of the whole index."""
        odd = damaged(self.folder, self.manifest)
        if odd:
            raise ValueError(f"the index in '{self.folder}' is damaged: {', '.join(odd[:3])}; scan into a new folder")

    def feature(self, id: int) -> Feature:
        """One feature in numbers. Raises ValueError for a number the SAE lacks."""
        self._require(id)
        histogram, n = np.asarray(self.arrays["histogram"][id]), int(self.arrays["histogram"][id].sum())
        used = histogram.nonzero()[0]
        shown = slice(used[0], used[-1] + 1) if len(used) else slice(0)
        edges = np.array(self.manifest["bin_edges"])
        top = self.arrays["top_value"][id]
        return Feature(
            id=id,
            n_firings=n,
            density=n / self.n_tokens,
            mean=float(self.arrays["total"][id]) / n if n else float("nan"),
            max=abs(float(top[0])) if len(top) else float("nan"),
            histogram=pd.DataFrame({"from": edges[shown], "n": histogram[shown]}),
            promoted=self._tokens("promoted", id),
            suppressed=self._tokens("suppressed", id),
            labels=self.labels.of(id),
        )

    def examples(self, id: int, n: int = 5) -> Ranked:
        """Where a feature fires: `n` rows where it is strongest, and `n` firings of each quarter of its strengths.

        Columns: `band` ("top", or "q4" for the strongest quarter to "q1"), `activation`, `text`, `tokens` and their
        `activations` (NaN where the window ends), `peak` (the firing among them), `position` and `source`. Firings of
        quarters are drawn alike from all of them. Raises ValueError for a number the SAE lacks.
        """
        self._require(id)
        sample = self.arrays["sample_position"][id]
        drawn = np.flatnonzero(sample >= 0)
        rows = [("top", "top", rank) for rank in np.flatnonzero(self.arrays["top_position"][id] >= 0)[:n].tolist()]
        for band, ranks in zip(range(BANDS, 0, -1), np.array_split(drawn, BANDS), strict=True):
            rows += [(f"q{band}", "sample", rank) for rank in self._spread(ranks, n).tolist()]
        made = [self._example(id, *row) for row in rows]
        columns = ["band", "activation", "text", "tokens", "activations", "peak", "position", "source"]
        return Ranked(pd.DataFrame(made, columns=columns), "activation", {"feature": id})

    @staticmethod
    def _spread(ranks: np.ndarray, n: int) -> np.ndarray:
        """At most `n` of the ranks, evenly spread."""
        chosen = np.linspace(0, len(ranks) - 1, min(n, len(ranks))).round().astype(int)
        return ranks[chosen]

    def _example(self, id: int, band: str, kind: str, rank: int) -> tuple:
        position = int(self.arrays[f"{kind}_position"][id, rank])
        before, after = self.manifest["settings"]["window"]
        peak, words = self.text.around(position, before, after)
        active = self.arrays[f"{kind}_window"][id, rank][before - peak : before - peak + len(words)]
        value = float(self.arrays[f"{kind}_value"][id, rank])
        source = self.text.rows.source_of(self.text.rows.row_of(position))
        text = "".join(parted(words, is_spaceless(self)))
        return band, value, text, words, active.tolist(), peak, position, source

    def promoting(self, token: str | int, n: int = 10) -> Ranked:
        """The features that raise a token's logit most, for an activation of 1 and a last norm of scale 1.

        Logits are measured from the mean over all tokens. Raises ValueError for what is no token, and for an SAE whose
        features do not write to the residual stream.
        """
        if "written" not in self.arrays:
            raise ValueError(f"the features of {self.hook} write no known direction of the residual stream")
        number = self.text.token(token) if isinstance(token, str) else token
        unembed = np.load(self.folder / "unembed.npy", mmap_mode="r")
        if not 0 <= number < len(unembed):
            raise ValueError(f"no token {number}; the model has 0 to {len(unembed) - 1}")
        logits = self.arrays["written"] @ unembed[number]
        meta = {"token": number, "text": self.text.word(number)}
        return self._best(logits, n, "logit", "logits per unit of activation", meta)

    def similar(self, feature: Any, n: int = 10) -> Ranked:
        """The features whose decoder directions have the greatest cosine with a feature's (its number), or a vector.

        Raises ValueError for a number the SAE lacks and for a vector of another width or of length 0.
        """
        directions = self.arrays["direction"]
        if isinstance(feature, int | np.integer):
            self._require(int(feature))
            cosines = directions @ directions[feature]
            cosines[feature] = -np.inf
            return self._best(cosines, min(n, self.n_features - 1), "cosine", "cosine", {"feature": int(feature)})
        vector = np.asarray(feature, np.float32)
        length = float(np.linalg.norm(vector))
        if vector.shape != directions.shape[1:] or not length > 0:
            raise ValueError(
                f"a vector of shape {vector.shape} and length {length:.3g}; directions are {directions.shape[1:]}"
            )
        return self._best(directions @ (vector / length), n, "cosine", "cosine", {})

    def cofiring(self, id: int, n: int = 10) -> Ranked:
        """The features that fire on the same tokens, by Jaccard overlap: shared / (either), at most those kept.

        Columns: `feature`, `overlap`, `shared` (tokens, of those on which co-firing was counted), `of_this` (share of
        this feature's firings). Raises ValueError for a number the SAE lacks.
        """
        self._require(id)
        fired, other = self.arrays["cofiring_n"], self.arrays["cofiring_feature"][id]
        other = np.array(other[other >= 0][:n])
        shared = np.array(self.arrays["cofiring_shared"][id][: len(other)])
        either = fired[id] + fired[other] - shared
        rows = {"feature": other, "overlap": shared / either, "shared": shared, "of_this": shared / max(1, fired[id])}
        return Ranked(pd.DataFrame(rows), "Jaccard overlap", {"feature": id, "n_tokens": int(fired[-1])})

    def firings(self, id: int) -> Ranked:
        """Every firing of a feature, strongest first: `position`, `activation`. Needs keep="all".

        Raises ValueError for a number the SAE lacks, and in an index of examples alone.
        """
        self._require(id)
        own = self._slice("feature_ends", id)
        columns = {"position": "by_feature_position", "activation": "by_feature_value"}
        rows = {key: np.array(self.arrays[name][own]) for key, name in columns.items()}
        return Ranked(pd.DataFrame(rows), "activation", {"feature": id})

    def at(self, position: int) -> Ranked:
        """The features that fire on one token of the corpus, strongest first. Needs keep="all".

        Raises ValueError for a place the corpus lacks, and in an index of examples alone.
        """
        if not 0 <= position < self.text.rows.n_tokens:
            raise ValueError(f"no token {position}; the corpus has 0 to {self.text.rows.n_tokens - 1}")
        own = self._slice("token_ends", position)
        feature, value = (np.array(self.arrays[f"by_token_{key}"][own]) for key in ("feature", "value"))
        order = np.argsort(-np.abs(value), kind="stable")
        rows = {"feature": feature[order], "activation": value[order]}
        return Ranked(pd.DataFrame(rows), "activation", {"position": position})

    def search(self, text: str, n: int = 20) -> Ranked:
        """The features whose labels match words, best first; see `Labels.search`."""
        return self.labels.search(text, n)

    def label(self, id: int, text: str, source: str = "user", automatic: bool = False) -> None:
        """Call a feature something; see `Labels.add`."""
        self.labels.add(id, text, source, automatic)

    def lookup(self, prompt: Any, n: int | None = None, *, effect: Any = None) -> "Lookup":
        """The features of each token of a prompt, by activation or by effect on a metric; see `questions.lookup`."""
        from mechkit.features.questions import lookup

        return lookup(self, prompt, n, effect=effect)

    def effect(self, features: int | Sequence[int], prompts: Any, metric: Any = None, **options: Any) -> "Result":
        """What features do to a metric on prompts, taken out or steered; see `questions.effect`."""
        from mechkit.features.questions import effect

        return effect(self, features, prompts, metric, **options)

    def contrast(self, texts_a: Any, texts_b: Any, **options: Any) -> Ranked:
        """The features that tell two sets of texts apart; see `questions.contrast`."""
        from mechkit.features.questions import contrast

        return contrast(self, texts_a, texts_b, **options)

    def quality(self, n_tokens: int = 20_000, *, seed: int = 0) -> "Quality":
        """How well the SAE does on this corpus, measured on about `n_tokens` of it; see `quality.of_index`."""
        from mechkit.features.quality import of_index

        return of_index(self, n_tokens, seed)

    def propose_labels(self, labeller: Any = None, ids: Iterable[int] | None = None, *, seed: int = 0) -> Ranked:
        """Labels by a program (words at the peaks, unless given), marked automatic; see `labelling.propose_labels`."""
        from mechkit.features.labelling import peak_words, propose_labels

        return propose_labels(self, labeller or peak_words, ids, seed)

    def detection(self, id: int, description: str | None = None, **options: Any) -> "Detection":
        """How well a description tells where a feature fires, on held-out texts; see `detection.detection`."""
        from mechkit.features.detection import detection

        return detection(self, id, description, **options)

    def page(self, id: int, path: str | Path, *, n: int = 5, effect: Any = None, quality: Any = None) -> Path:
        """Write a page about a feature that opens with no network, with `n` examples of each band; returns `path`.

        `effect` is what `effect(id, prompts)` gave, `quality` what `quality()` gave; each is shown where it is given.
        """
        from mechkit.features.pages import write_feature_page

        return write_feature_page(self, id, path, n, effect=effect, quality=quality)

    def prompt_page(self, prompt: Any, path: str | Path, *, n: int = 5, effect: Any = None) -> Path:
        """Write a page about a prompt that opens with no network, with `n` features of each token; returns `path`.

        With a metric as `effect`, features are ranked by what they do to it; see `lookup`.
        """
        from mechkit.features.pages import write_prompt_page

        return write_prompt_page(self, prompt, path, n, effect)

    def sql(self, query: str) -> pd.DataFrame:
        """The answer of an SQL query over the index's tables; see `tables.sql`."""
        from mechkit.features.tables import sql

        return sql(self, query)

    def _require(self, id: int) -> None:
        if not 0 <= id < self.n_features:
            raise ValueError(f"no feature {id}; '{self.sae}' has 0 to {self.n_features - 1}")

    def _slice(self, name: str, number: int) -> slice:
        if name not in self.arrays:
            raise ValueError('this index keeps examples alone; scan with keep="all" to ask for every activation')
        ends = self.arrays[name]
        return slice(int(ends[number - 1]) if number else 0, int(ends[number]))

    def _tokens(self, kind: str, id: int) -> pd.DataFrame:
        known = f"{kind}_token" in self.arrays
        token = np.array(self.arrays[f"{kind}_token"][id]) if known else np.zeros(0, int)
        logit = np.array(self.arrays[f"{kind}_logit"][id]) if known else np.zeros(0)
        return pd.DataFrame({"token": token, "text": [self.text.word(int(one)) for one in token], "logit": logit})

    def _best(self, values: np.ndarray, n: int, column: str, unit: str, meta: dict) -> Ranked:
        order = np.argsort(-values, kind="stable")[:n]
        return Ranked(pd.DataFrame({"feature": order, column: values[order]}), unit, meta)
