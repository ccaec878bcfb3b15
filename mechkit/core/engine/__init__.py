"""How a sweep is run: `agenda` (what happens where), `fused` (lean layers), `base` (the shared run), `wave` (the edited
runs, all in one pass over the layers), `general` (the same through the model's own modules), `readout` (metrics)."""
