"""Time the grid: the article's 225 predictions of a tiled batch against ours.

    python tests/bench_plot.py

Reads   model/decoder.keras below the current folder, of two latents.
Writes  nothing but the times. With a model of 256 pixels it takes two minutes on two
        cores.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.stats
from conftest import load_script

# ----------------------------------------------------------------------------
# Settings: edit these
# ----------------------------------------------------------------------------
MODEL_DIR = "model"
GRID_SIZE = 15  # as in the article
BATCH_SIZE = 32  # as in the article: each code is repeated so many times
# ----------------------------------------------------------------------------


def decode_one_by_one(decoder, positions, batch_size):
    """Decode a grid as the article does: a prediction a tile, of a tiled batch."""
    rows = []
    for y in positions[::-1]:
        rows.append([])
        for x in positions:
            codes = np.tile([[x, y]], (batch_size, 1)).astype(np.float32)
            images = decoder.predict(codes, batch_size=batch_size, verbose=0)
            rows[-1].append(images[0])
    return np.rint(np.array(rows) * 255).astype(np.uint8)


def measure(function, *values):
    """Return what the function returns and the seconds that it took."""
    start = time.perf_counter()
    result = function(*values)
    return result, time.perf_counter() - start


def main():
    plot = load_script("plot_latent.py")
    folder = Path(MODEL_DIR)
    if not (folder / "decoder.keras").exists():
        sys.exit(f"Found no {folder.resolve() / 'decoder.keras'}. Run train_vae.py.")
    _, decoder = plot.load_models(folder)
    plane = plot.make_prior_plane(np.ones(2), True)
    positions = scipy.stats.norm.ppf(np.linspace(0.05, 0.95, GRID_SIZE))
    lattice = plot.make_lattice(positions, positions)
    codes = plane.locate(lattice).reshape(GRID_SIZE**2, -1)
    plot.decode(decoder, codes[:1])  # so that no time goes into building the graph
    tiles, ours = measure(plot.decode, decoder, codes)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch, "grid.png"), Path(scratch, "grid.jpg")
        values = (*files, decoder, plane, positions, positions)
        _, drawn = measure(plot.plot_grid, *values)
    others, article = measure(decode_one_by_one, decoder, positions, BATCH_SIZE)
    gap = np.abs(tiles.reshape(others.shape).astype(int) - others).max()
    print(f"tiles:             {GRID_SIZE} x {GRID_SIZE} of {tiles.shape[1:]}")
    print(f"article's way:     {article:.2f} s")
    print(f"in batches:        {ours:.2f} s, {article / ours:.1f} times faster")
    print(f"and both files:    {drawn:.2f} s, {article / drawn:.1f} times faster")
    print(f"largest gap:       {gap} of 255")


if __name__ == "__main__":
    main()
