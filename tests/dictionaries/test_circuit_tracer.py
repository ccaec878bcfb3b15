"""circuit-tracer's folder formats: small files as it writes them, read whole or in slices, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

import mechkit as mk
from mechkit.dictionaries import load_transcoders
from mechkit.dictionaries.stored import Stored
from tests.conftest import tiny_model

D, N = 16, 20


def write(folder, *, across=False, n_layers=2, config=None, **extra):
    """A folder of random transcoders; `extra` tensors go into every layer's file."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.3  # noqa: E731
    for layer in range(n_layers):
        end = f"_{layer}" if across else ""
        decoder = {f"W_dec{end}": draw(N, n_layers - layer, D) if across else draw(N, D)}
        encoder = {f"W_enc{end}": draw(N, D), f"b_enc{end}": draw(N), f"b_dec{end}": draw(D)} | extra
        if across:
            save_file(encoder, folder / f"W_enc_{layer}.safetensors")
            save_file(decoder, folder / f"W_dec_{layer}.safetensors")
        else:
            save_file(encoder | decoder, folder / f"layer_{layer}.safetensors")
    kind = "cross_layer_transcoder" if across else "transcoder_set"
    lines = {"model_kind": kind, "feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text("".join(f"{k}: {v}\n" for k, v in (lines | (config or {})).items()))
    return folder


def row_errors(graph):
    matrix = graph.matrix()
    return (matrix.sum(1) - graph.preactivations).abs() / matrix.abs().sum(1)


@pytest.mark.parametrize("across", [False, True], ids=["per layer", "across layers"])
@pytest.mark.parametrize("hook", ["ln2.hook_normalized", "hook_resid_mid", "mlp.hook_in"])
def test_a_folder_gives_a_graph_whose_rows_sum_from_slices_as_from_memory(tmp_path, across, hook):
    model, folder = tiny_model(), write(tmp_path, across=across, config={"feature_input_hook": hook})
    whole, sliced = (
        mk.trace(model, [1, 2, 3], load_transcoders(folder, model, lazy=lazy), check=False) for lazy in (False, True)
    )
    assert float(row_errors(whole).max()) < 1e-5  # float32
    torch.testing.assert_close(sliced.matrix(), whole.matrix(), rtol=0, atol=1e-6)
    assert [node.id for node in sliced.nodes] == [node.id for node in whole.nodes]
    assert sum(node.kind == "feature" for node in whole.nodes) > 20


def test_what_reads_after_the_norms_weights_computes_what_its_formula_says(tmp_path):
    model = tiny_model()
    folder = write(tmp_path, config={"feature_input_hook": "mlp.hook_in"}, W_skip=torch.eye(D) * 0.3)
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
    for basis in load_transcoders(folder, model, lazy=True):
        norm = model.blocks[basis.layer].ln2
        x = cache[basis.hook_in][0] * norm.w + norm.b
        pre = x @ Stored(folder / f"layer_{basis.layer}.safetensors", "W_enc").rows(range(N)).T + basis.b_enc
        torch.testing.assert_close(basis.preactivations(cache[basis.hook_in][0]), pre)
        rows, added = basis.reads([0, 5])
        torch.testing.assert_close(cache[basis.hook_in][0] @ rows.T + added, pre[:, [0, 5]])
        written = cache[basis.hook_in][0] @ basis.W_skip.T + basis.b_dec
        stored = Stored(folder / f"layer_{basis.layer}.safetensors", "b_dec").rows(range(D))
        torch.testing.assert_close(written, x * 0.3 + stored)


@pytest.mark.parametrize(
    ("extra", "kept"),
    [({"activation_function.threshold": torch.full((N,), 0.7)}, "threshold"), ({"k": torch.tensor(3)}, "k")],
)
def test_thresholds_and_k_are_read(tmp_path, extra, kept):
    model = tiny_model()
    basis = load_transcoders(write(tmp_path, **extra), model)[0]
    acts = basis.activations(torch.randn(5, D, generator=torch.Generator().manual_seed(0)) * 2)
    assert getattr(basis, kept) is not None
    assert 0 < int((acts > 0).sum(1).max()) <= (3 if kept == "k" else N)
    assert kept == "k" or float(acts[acts > 0].min()) > 0.7


def test_slices_read_only_the_rows_that_are_asked_for(tmp_path):
    folder = write(tmp_path)
    stored = Stored(folder / "layer_1.safetensors", "W_dec")
    every = stored.rows(range(N))
    torch.testing.assert_close(stored.rows([7, 2, 7]), every[[7, 2, 7]])
    torch.testing.assert_close(torch.cat([part for _, part in stored.blocks()]), every)
    assert stored.shape == (N, D)


def change(file, **tensors):
    def damage(folder):
        from safetensors.torch import load_file

        save_file({**load_file(folder / file), **tensors}, folder / file)

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (lambda f: (f / "layer_1.safetensors").unlink(), FileNotFoundError, "has no layer_1.safetensors; this model"),
        (lambda f: (f / "layer_2.safetensors").touch(), ValueError, "holds 3 layers of layer; this model has 2"),
        (lambda f: (f / "layer_0.safetensors").write_bytes(b"xx"), ValueError, "layer_0.safetensors' is damaged"),
        (change("layer_0.safetensors", W_enc=torch.zeros(N, 8)), ValueError, r"W_enc \(20, 8\) instead of \(20, 16\)"),
        (change("layer_0.safetensors", b_enc=torch.zeros(3)), ValueError, r"b_enc \(3,\) instead of \(20,\)"),
        (lambda f: write(f, config={"feature_input_hook": "hook_q"}), ValueError, "reads 'hook_q'"),
        (lambda f: write(f, config={"feature_output_hook": "hook_q"}), ValueError, "writes 'hook_q'"),
        (
            lambda f: write(f, config={"model_kind": "cross_layer_transcoder"}),
            ValueError,
            "files are of a transcoder_set",
        ),
        (lambda f: write(f, config={"processing": "folded"}), ValueError, "processing 'folded', this model has 'none'"),
        (lambda f: (f / "config.yaml").write_text("{"), ValueError, "config.yaml' is damaged"),
        (lambda f: (f / "config.yaml").write_text("- 1"), ValueError, "holds no settings"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_clear_error(tmp_path, damage, error, complaint):
    model, folder = tiny_model(), write(tmp_path)
    assert len(load_transcoders(folder, model)) == 2
    damage(folder)
    with pytest.raises(error, match=complaint) as caught:
        load_transcoders(folder, model)
    assert "\n" not in str(caught.value)


def test_transcoders_of_unprocessed_weights_are_refused_on_folded_ones(tmp_path):
    with pytest.raises(ValueError, match="trained on weights with processing 'none', this model has 'folded'"):
        load_transcoders(write(tmp_path), tiny_model(normalization_type="LNPre"))


def test_saelens_files_are_read_in_slices_too(addition):
    folder = addition.mechkit_origin.folder / "transcoders"
    whole, sliced = (load_transcoders(folder, addition, lazy=lazy) for lazy in (False, True))
    first, second = (mk.trace(addition, "35+59=", bases, check=False) for bases in (whole, sliced))
    torch.testing.assert_close(second.matrix(), first.matrix(), rtol=0, atol=1e-5)  # float32
    assert isinstance(sliced[0].W_dec, Stored)
