"""Interventions against plain hooks on the model, and what graphs predict of them where they must be right."""

import copy

import pytest
import torch

import mechkit as mk
from mechkit.core.loop import hooked
from mechkit.dictionaries import neurons
from mechkit.graphs.truth.changes import changes
from mechkit.graphs.truth.generation import continued, steering_hooks
from tests.conftest import tiny_model
from tests.graphs.frozen_runs import TOKENS, across, traced, transcoders

POST_NORMS = {"use_normalization_before_and_after": True, "normalization_type": "RMS"}
MODELS = {
    "transcoders": lambda: graph_of(tiny_model(n_layers=3), transcoders),
    "skip": lambda: graph_of(tiny_model(n_layers=3), transcoders, skip=True),
    "across layers": lambda: graph_of(tiny_model(n_layers=3), across),
    "before a norm": lambda: graph_of(tiny_model(n_layers=3, **POST_NORMS), transcoders, before_norm=True),
    "gated neurons": lambda: graph_of(tiny_model(n_layers=3, gated_mlp=True, act_fn="silu"), neurons),
}


def graph_of(model, bases, **options):
    return traced(model, bases(model, **options))


@pytest.fixture(autouse=True)
def one_control(monkeypatch):
    """Controls are not what these tests are about; one permuted graph is quicker than twenty."""
    monkeypatch.setattr("mechkit.graphs.truth.check.N_CONTROLS", 1)


@pytest.fixture(scope="module", params=MODELS)
def graph(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def plain():
    return MODELS["transcoders"]()


def decoder(basis, index, layer):
    W = basis.W_dec
    return W[index, layer - basis.layer] if W.ndim == 3 else W[index]


def by_hand(graph, changed, hooks=()):
    """Logits after the prompt when features change, by adding decoders where the MLPs have them. A norm after the MLP
    keeps its scale: what is added there is divided by hand."""
    engine, model = graph.attribution, graph.attribution.frozen.model
    tokens, scales = engine.frozen.prompts.tokens, {}

    def add(layer):
        def hook(x, hook):
            x = x.clone()
            for node, by in changed:
                basis = engine.bases[node.layer]
                if layer in basis.reaches:
                    row = by * decoder(basis, node.index, layer)
                    if layer in scales:
                        row = row / scales[layer][0, node.pos] * getattr(model.blocks[layer].ln2_post, "w", 1.0)
                    x[:, node.pos] += row
            return x

        return f"blocks.{layer}.hook_mlp_out", hook

    layers = range(model.cfg.n_layers)
    keep = [
        (f"blocks.{layer}.ln2_post.hook_scale", lambda x, hook, layer=layer: scales.__setitem__(layer, x.clone()))
        for layer in layers
        if engine.bases[layer].hook_out.endswith("mlp.hook_out")
    ]
    with torch.no_grad():
        with hooked(model, keep):
            model(tokens)
        with hooked(model, [*hooks, *(add(layer) for layer in layers)]):
            return model(tokens)[0, -1]


def cached(model, tokens, endings):
    """Hooks that put back what a plain run holds."""
    held = {}
    names = [name for name in model.hook_dict if name.endswith(endings) and "attn.q_" not in name]
    with torch.no_grad(), hooked(model, [(n, lambda x, hook, n=n: held.__setitem__(n, x.clone())) for n in names]):
        model(tokens)
    return [(name, lambda x, hook, name=name: held[name]) for name in names]


def test_an_intervention_shifts_what_the_feature_writes_and_keeps_the_rest(graph):
    node, other = graph.attribution.features[0], graph.attribution.features[-1]
    found = graph.intervene({node: -1.0, other.id: 2.0})
    expected = by_hand(graph, [(node, -2 * node.value), (other, other.value)])
    assert torch.allclose(found.after, expected, atol=1e-4)  # float32
    assert torch.allclose(found.before, by_hand(graph, []), atol=1e-5)
    assert not torch.allclose(found.after, found.before, atol=1e-2)
    root = graph.roots[0].index
    moved = (found.after[root] - found.after.mean()) - (found.before[root] - found.before.mean())
    assert float(found.measured[0]) == pytest.approx(float(moved), abs=1e-4)


def test_with_all_frozen_every_root_moves_as_predicted_active_or_not(graph):
    quiet = next(i for i in range(10**6) if not is_active(graph, 0, i, 2)) if has_quiet(graph) else None
    asked = {graph.attribution.features[0].id: -1.0}
    found = graph.intervene(asked, freeze=("attention", "norms", "mlps"))
    assert float(found.measured.abs().max()) > 1e-3
    assert torch.allclose(found.predicted, found.measured, atol=1e-4)
    if quiet is not None:
        site = f"L0.mlp_out[{graph.attribution.bases[0].name}]@2#{quiet}"
        found = graph.intervene({site: 3.0}, to="value", freeze=("attention", "norms", "mlps"))
        assert float(found.measured.abs().max()) > 1e-3
        assert torch.allclose(found.predicted, found.measured, atol=1e-4)


def is_active(graph, layer, index, pos):
    return any((node.layer, node.index, node.pos) == (layer, index, pos) for node in graph.attribution.features)


def has_quiet(graph):
    return sum(n.layer == 0 and n.pos == 2 for n in graph.attribution.features) < graph.attribution.bases[0].d_features


@pytest.mark.parametrize(
    ("freeze", "endings"),
    [(("attention",), "hook_pattern"), (("norms",), "hook_scale"), (("attention", "norms"), ("pattern", "scale"))],
)
def test_frozen_parts_keep_their_values(plain, freeze, endings):
    model, tokens = plain.attribution.frozen.model, plain.attribution.frozen.prompts.tokens
    node = plain.attribution.features[0]
    expected = by_hand(plain, [(node, node.value)], cached(model, tokens, endings))
    assert torch.allclose(plain.intervene({node: 2.0}, freeze=freeze).after, expected, atol=1e-4)
    assert not torch.allclose(by_hand(plain, [(node, node.value)]), expected, atol=1e-3)


def test_a_constrained_layer_keeps_its_mlp_and_higher_ones_answer(plain):
    model, tokens = plain.attribution.frozen.model, plain.attribution.frozen.prompts.tokens
    node = plain.attribution.features[0]
    held = cached(model, tokens, ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"))
    expected = by_hand(plain, [(node, node.value)], held)
    found = plain.intervene({node: 2.0}, constrain=range(2))
    assert torch.allclose(found.after, expected, atol=1e-4)
    assert not torch.allclose(found.after, plain.intervene({node: 2.0}).after, atol=1e-3)


@pytest.mark.parametrize("name", ["transcoders", "skip", "across layers"])
def test_with_errors_frozen_dictionaries_stand_in_for_the_mlps(name):
    graph = MODELS[name]()
    engine, model = graph.attribution, graph.attribution.frozen.model
    tokens, node, seen, first = engine.frozen.prompts.tokens, graph.attribution.features[0], {}, {}
    frozen_out = dict(cached_values(model, tokens, "hook_mlp_out"))

    def made(layer):
        """What dictionaries write to one layer, in this run."""
        total = 0
        for basis in engine.bases:
            if layer in basis.reaches:
                W = basis.W_dec if basis.W_dec.ndim == 2 else basis.W_dec[:, layer - basis.layer]
                total = total + basis.activations(seen[basis.hook_in]) @ W
        basis = engine.bases[layer]
        return total if basis.W_skip is None else total + seen[basis.hook_in] @ basis.W_skip.T

    def stand_in(layer):
        def hook(x, hook):
            if layer not in first:
                first[layer] = made(layer)
                return None
            return frozen_out[f"blocks.{layer}.hook_mlp_out"] + made(layer) - first[layer]

        return f"blocks.{layer}.hook_mlp_out", hook

    hooks = [(basis.hook_in, lambda x, hook, n=basis.hook_in: seen.__setitem__(n, x)) for basis in engine.bases]
    hooks += [stand_in(layer) for layer in range(3)]
    with torch.no_grad(), hooked(model, hooks):
        model(tokens)
    expected = by_hand(graph, [(node, -node.value)], hooks)
    assert torch.allclose(graph.intervene({node: 0.0}, freeze="errors").after, expected, atol=1e-4)
    assert not torch.allclose(by_hand(graph, [(node, -node.value)]), expected, atol=1e-3)


def cached_values(model, tokens, ending):
    held = {}
    names = [name for name in model.hook_dict if name.endswith(ending)]
    with torch.no_grad(), hooked(model, [(n, lambda x, hook, n=n: held.__setitem__(n, x.clone())) for n in names]):
        model(tokens)
    return held.items()


def test_an_error_node_can_be_taken_out(plain):
    node = next(one for one in plain.sources if one.kind == "error" and one.layer == 1)
    left = plain.attribution.errors[1][node.pos]
    expected = mk.sweep(
        plain.attribution.frozen.model,
        plain.attribution.frozen.prompts,
        [[mk.Add(f"L1.mlp_out@{node.pos}", -left)]],
        lambda logits: logits[:, -1, 0],
    ).scores[0, 0]
    assert float(plain.intervene({node.id: 0.0}).after[0]) == pytest.approx(float(expected), abs=1e-4)


def test_a_swap_takes_one_feature_out_and_puts_the_other_at_its_place(plain):
    node = plain.attribution.features[0]
    other = next(i for i in range(30) if not is_active(plain, node.layer, i, node.pos))
    found = plain.intervene(swap={node.id: f"L{node.layer}.mlp_out[random]#{other}"})
    basis = plain.attribution.bases[node.layer]
    model, tokens = plain.attribution.frozen.model, plain.attribution.frozen.prompts.tokens
    row = node.value * (basis.W_dec[other] - basis.W_dec[node.index])
    hook = mk.Add(f"L{node.layer}.mlp_out@{node.pos}", row).hooks(model)
    with torch.no_grad(), hooked(model, hook):
        assert torch.allclose(found.after, model(tokens)[0, -1], atol=1e-4)


def test_a_supernode_is_changed_whole(addition):
    graph = mk.trace(addition, "35+59=", check=False)
    name, members = next((name, nodes) for name, nodes in graph.supernodes.items() if len(nodes) > 1)
    features = [node for node in members if node.kind == "feature"]
    one_by_one = graph.intervene(dict.fromkeys(features, 0.5))
    assert torch.equal(graph.intervene({name: 0.5}).after, one_by_one.after)
    assert len(one_by_one.changes) == len(features) > 1


def test_without_nonlinearity_steering_is_predicted_at_every_size():
    model = tiny_model(n_layers=3)
    for block in model.blocks:
        block.mlp.b_in.data += 50.0  # neurons far above zero: with norms and attention held, the graph is the model
    graph = mk.trace(model, [1, 2, 3], neurons(model), node_threshold=0.3, check=False)
    for options in ({"multiple": 3.0}, {"multiple": -1.0}, {"amount": 1.0}):
        check = graph.verify(**options)
        assert float((check.predicted - check.frozen).abs().max() / check.frozen.abs().max()) < 1e-3  # float32, near 50
        assert check.exact_error < 1e-4
    assert float(check.frozen.abs().max()) > 1e-3


def test_steering_twice_as_active_is_predicted_as_the_negative_of_suppression(plain):
    suppressed, doubled = plain.verify(), plain.verify(multiple=2.0)
    assert torch.allclose(doubled.predicted, -suppressed.predicted)
    assert torch.allclose(doubled.gradient, -suppressed.gradient)
    assert not torch.allclose(doubled.measured, -suppressed.measured, rtol=0.05)


QUICK = ((3, 7), "L1.H1.z@-1", "L2.H1.k@2", "L2.mlp_out[random]@4#{}")
"""Roots that are tried whenever tests are; the others are slow together."""


ROOTS = [
    *QUICK,
    5,
    torch.linspace(-1, 1, 16),
    "L2.H0.q@3",
    "L1.H1.v@4",
    "L2.resid_mid@-1",
    "L1.mlp_out@-1",
    "L2.attn_out@-1",
    "L2.ln1.normalized@-1",
    "L2.ln2.normalized@3#4",
    "ln_final@-1",
]


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(one, marks=() if any(one is quick for quick in QUICK) else pytest.mark.slow, id=str(one)[:24])
        for one in ROOTS
    ],
)
def test_any_root_is_checked_at_every_level(target):
    model = tiny_model(n_layers=3, n_key_value_heads=1)
    bases = transcoders(model)
    if isinstance(target, str) and "{}" in target:
        target = target.format(
            next(n.index for n in traced(model, bases).attribution.features if n.layer == 2 and n.pos == 4)
        )
    graph = mk.trace(model, TOKENS, bases, targets=[target], node_threshold=0.8)
    assert len(graph.check.groups) >= 2
    assert graph.check.exact_error < 1e-5
    node = graph.check.nodes[int(graph.check.measured.abs().argmax())]
    found = graph.intervene({node: 0.0})
    assert float(graph.check.measured.abs().max()) > 1e-4
    assert float(found.measured[0]) == pytest.approx(
        float(graph.check.measured.abs().max() * found.measured[0].sign()), rel=1e-3
    )
    before, after, nudged = (root_value(graph, [(node, by)]) for by in (0.0, -node.value, -1e-5 * node.value))
    assert float(found.measured[0]) == pytest.approx(after - before, rel=1e-3, abs=1e-5)
    i = graph.check.nodes.index(node)
    assert float(graph.check.gradient[i]) == pytest.approx((nudged - before) / 1e-5, rel=1e-2, abs=1e-4)  # float64


def root_value(graph, changed):
    """What a root is, in float64, read where TransformerLens has it."""
    root, engine = graph.attribution.roots[0], graph.attribution
    model, site = copy.deepcopy(engine.frozen.model).to(torch.float64), graph.attribution.roots[0].site
    seen = {}
    name = "unembed.hook_in" if site.name == "logits" else site.hook
    if site.basis is not None:
        name = engine.bases[site.layer].hook_in
    added = [
        hook
        for node, by in changed
        for hook in mk.Add(
            f"L{node.layer}.mlp_out@{node.pos}", by * engine.bases[node.layer].W_dec[node.index].double()
        ).hooks(model)
    ]
    with torch.no_grad(), hooked(model, [*added, (name, lambda x, hook: seen.update(x=x))]):
        model(engine.frozen.prompts.tokens)
    x = seen["x"][0, site.pos]
    if site.head is not None:
        x = x[min(site.head, len(x) - 1)]
    if site.basis is not None:
        basis = engine.bases[site.layer]
        return float(x @ basis.W_enc[:, site.index].double() + basis.b_enc[site.index])
    return float(x @ root.vector.double() + root.added)


@pytest.mark.parametrize(("to", "every"), [("multiple", False), ("multiple", True), ("value", True), ("amount", True)])
@pytest.mark.parametrize("name", MODELS)
def test_generation_with_a_cache_steers_as_without_and_as_by_hand(name, every, to):
    graph = MODELS[name]()
    model, tokens = graph.attribution.frozen.model, graph.attribution.frozen.prompts.tokens
    node = next(n for n in graph.attribution.features if n.pos == len(TOKENS) - 1)
    hooks = steering_hooks(graph, changes(graph, {node: 4.0}, to=to), every=every)
    plain = continued(graph, hooks, 4)
    assert with_cache(model, tokens, hooks, 4) == plain
    assert plain == graph.intervene({node: 4.0}, to=to, generate=4, every=every).generated[1]
    longer = torch.tensor([[*TOKENS, *plain[:-1]]])
    with torch.no_grad(), hooked(model, hooks):
        seen = model(longer)[0, len(TOKENS) - 1 :]
    expected = generated_by_hand(graph, node, to, longer, every)
    assert torch.allclose(seen, expected, atol=1e-3)  # float32
    with torch.no_grad():
        assert not torch.allclose(seen, model(longer)[0, len(TOKENS) - 1 :], atol=1e-2)


def with_cache(model, tokens, hooks, n):
    """Greedy tokens with TransformerLens's key/value cache."""
    from transformer_lens import TransformerLensKeyValueCache

    cache, found = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1), []
    with torch.no_grad(), hooked(model, hooks):
        for _ in range(n):
            mask = torch.ones_like(tokens)
            tokens = model(tokens, past_kv_cache=cache, attention_mask=mask)[:, -1:].argmax(-1)
            found.append(int(tokens))
    return found


def test_hooks_serve_transformerlens_own_generation(addition):
    graph = mk.trace(addition, "35+59=", check=False)
    node = graph.attribution.features[-1]
    hooks = steering_hooks(graph, changes(graph, {node: -8.0}), every=True)
    tokens = graph.attribution.frozen.prompts.tokens
    with addition.hooks(fwd_hooks=hooks):
        out = addition.generate(tokens, max_new_tokens=1, do_sample=False, stop_at_eos=False, verbose=False)
    assert out[0, -1:].tolist() == continued(graph, hooks, 1)
    assert out[0, -1:].tolist() != continued(graph, [], 1)


def generated_by_hand(graph, node, to, tokens, every):
    """Logits from the prompt's last token on, with the feature's writes changed there and, if asked, after it."""
    engine, model, seen = graph.attribution, graph.attribution.frozen.model, {}
    basis = engine.bases[node.layer]
    scales = dict(cached_values(model, engine.frozen.prompts.tokens, "ln2_post.hook_scale"))

    def add(layer):
        def hook(x, hook):
            x = x.clone()
            active = basis.activations(seen["x"])[0, :, node.index].clone()
            active[node.pos] = node.value
            wanted = {"multiple": 4 * active, "value": active * 0 + 4, "amount": active + 4}[to]
            by = (wanted - active)[:, None] * decoder(basis, node.index, layer)
            by[: node.pos] = 0
            by[node.pos + 1 :] *= every
            if basis.hook_out.endswith("mlp.hook_out"):
                scale = seen["scale"][0].clone()
                scale[: len(TOKENS)] = scales[f"blocks.{layer}.ln2_post.hook_scale"][0]
                by = by / scale * getattr(model.blocks[layer].ln2_post, "w", 1.0)
            return x + by

        return f"blocks.{layer}.hook_mlp_out", hook

    hooks = [(basis.hook_in, lambda x, hook: seen.update(x=x)), *(add(layer) for layer in basis.reaches)]
    post = f"blocks.{node.layer}.ln2_post.hook_scale"
    hooks += [(post, lambda x, hook: seen.update(scale=x))] if post in model.hook_dict else []
    with torch.no_grad(), hooked(model, hooks):
        return model(tokens)[0, len(TOKENS) - 1 :]


def test_frozen_attention_holds_on_the_prompt_while_generating(plain):
    model, tokens = plain.attribution.frozen.model, plain.attribution.frozen.prompts.tokens
    node = plain.attribution.features[0]
    found = plain.intervene({node: 3.0}, freeze=("attention", "norms"), generate=1)
    assert found.generated[1] == [int(found.after.argmax())]
    assert continued(plain, [], 3) == with_cache(model, tokens, [], 3)


def test_the_model_is_as_it_was_after_an_error_halfway(plain):
    model = plain.attribution.frozen.model
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    node, block = plain.attribution.features[0], model.blocks[1]
    block.mlp.hook_post.register_forward_hook(stop := Halting())
    try:
        for call in (lambda: plain.intervene({node: 0.0}, generate=2), lambda: plain.verify()):
            stop.on = True
            with pytest.raises(KeyboardInterrupt):
                call()
            stop.on = False
            own = sum(len(point._forward_hooks) for point in model.hook_dict.values())
            assert own == 1  # the one that stops
            assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        block.mlp.hook_post._forward_hooks.clear()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


class Halting:
    on = False

    def __call__(self, module, inputs, output):
        if self.on:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g: g.intervene({"nothing like it": 0.0}), "no supernode, no node's id"),
        (lambda g: g.intervene({"nonsense": 0.0}), "no supernode, no node's id"),
        (lambda g: g.intervene({}), "nothing is changed"),
        (lambda g: g.intervene({"L0.mlp_out[random]@2#999": 1.0}), "up to #29"),
        (lambda g: g.intervene({"L0.mlp_out[random]#3": 1.0}), "needs a position"),
        (lambda g: g.intervene({quiet_site(g): 2.0}), "no multiples"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0, g.attribution.features[0].id: 1.0}), "changed twice"),
        (lambda g: g.intervene({g.roots[0]: 0.0}), "no feature and no error"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0}, freeze=("everything",)), "cannot freeze 'everything'"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0}, constrain=range(1, 7)), "layers 0 to 2"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0}, generate=50), "context of 12"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0}, generate=2, freeze="mlps"), "on the prompt only"),
        (lambda g: g.intervene({g.attribution.features[0]: 0.0}, to="times"), "'multiple', 'value' or 'amount'"),
        (lambda g: g.verify(root=9), "numbered from 0"),
    ],
)
def test_what_cannot_be_done_is_said(plain, call, says):
    with pytest.raises(ValueError, match=says):
        call(plain)


def quiet_site(graph):
    return f"L0.mlp_out[random]@2#{next(i for i in range(30) if not is_active(graph, 0, i, 2))}"
