"""Run as a script: peak memory above the loaded model during a sweep of 2,000 runs, in bytes, beside the limit.

A thread reads the process's resident memory every millisecond; a process of its own keeps other tests out of it.
"""

import os
import sys
import threading
import time

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import mechkit as mk


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(limit: int) -> None:
    torch.set_num_threads(2)
    config = HookedTransformerConfig(
        n_layers=8, d_model=256, n_heads=8, d_head=32, d_mlp=1024, n_ctx=32, d_vocab=5000, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    prompts = mk.Prompts.from_tokens(torch.randint(0, 5000, (1, 32)), [1], [2])
    mk.sweep(model, prompts, [[mk.Zero("L7.z")]], mk.logit_diff)  # the check of the model comes before what is measured
    runs = [[mk.Scale(site, 0.5)] for site in mk.expand(model, ["L*.H*.z@*"], prompts)][:2000]
    before, peak, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    swept = mk.sweep(model, prompts, runs, mk.logit_diff, memory=limit)
    stop.set()
    watcher.join()
    print(len(runs), swept.passes, peak[0] - before)


if __name__ == "__main__":
    main(int(sys.argv[1]))
