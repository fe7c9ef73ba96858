"""Figures of relation matrices and memory, for any number of classes."""

import io
import pytest, torch
from matplotlib.text import Text
from PIL import Image
from idrnet_nb.data.labels import palette
from idrnet_nb.experiments.relation_figures import animate, show_graph, show_matrix_clustered, show_memory, show_steps


@pytest.fixture(autouse=True)
def no_windows():
    import matplotlib

    matplotlib.use('Agg')
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


def texts(ax):
    return [t.get_text() for t in ax.texts]


@pytest.mark.parametrize('k', [1, 2, 3, 12, 41, 150])
def test_matrices_of_any_size(k):
    t = torch.randn(k, k, generator=torch.Generator().manual_seed(k))
    t[0, -1] = torch.nan
    names = [f'class {i}' for i in range(k)]
    ax = show_matrix_clustered(t, names).axes[1]
    n = min(k, 40)
    assert ax.images[0].get_array().shape == (n, n) and len(ax.get_yticklabels()) == n
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax
    order = [names.index(l.get_text()) for l in ax.get_yticklabels()]
    drawn = torch.as_tensor(ax.images[0].get_array().data.copy())
    assert len(set(order)) == n and torch.equal(drawn, t.nan_to_num(0)[order][:, order])
    off = t.nan_to_num(0).masked_fill(torch.eye(k).bool(), 0)
    assert len(show_graph(t, names, 7).axes[0].patches) == min(7, int((off > 0).sum()))
    film = animate([t, t + 1], [0, 1], names)
    assert len(film) <= 300_000 and Image.open(io.BytesIO(film)).n_frames == 2
    assert len(show_steps([t], [0], names).axes) == 2


def test_clusters_lie_together():
    t = torch.zeros(6, 6)
    for a in (0, 2, 4):
        for b in (1, 3, 5):
            t[a, b] = 1.0
    for a in (0, 2, 4):
        t[a] += 0.01 * torch.arange(6)
    order = [l.get_text() for l in show_matrix_clustered(t, list('abcdef')).axes[1].get_yticklabels()]
    assert {*order[:3]} in ({*'ace'}, {*'bdf'})


def test_graph_draws_the_strongest():
    t = torch.tensor([[9.0, 3, 0], [0, 9, -8], [1, 2, 9]])
    f = show_graph(t, ['a', 'b', 'c'], 2).axes[0]
    assert len(f.patches) == 2 and sorted(texts(f)) == ['a', 'b', 'c']
    assert max(p.get_linewidth() for p in f.patches) == pytest.approx(4.6)
    known = torch.zeros(3, 3).bool()
    known[0, 1] = True
    styles = [p.get_linestyle() for p in show_graph(t, 'abc', 2, known).axes[0].patches]
    assert len(set(map(str, styles))) == 2
    assert not show_graph(torch.zeros(3, 3), 'abc').axes[0].patches


def test_animation():
    matrices = [torch.eye(12) * i for i in range(21)]
    film = Image.open(io.BytesIO(animate(matrices, range(0, 210, 10), [f'c{i}' for i in range(12)])))
    assert film.n_frames == 21 and film.format == 'GIF' and film.info.get('loop') == 0
    noisy = [torch.randn(150, 150, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    data = animate(noisy, range(6), range(150), most=100_000)
    assert len(data) <= 100_000 or Image.open(io.BytesIO(data)).n_frames == 2
    with pytest.raises(ValueError, match='at least one'):
        animate([], [], [])


@pytest.mark.parametrize('k', [2, 12, 150])
def test_memory_names_do_not_overlap(k):
    q = torch.randn(k, 8, generator=torch.Generator().manual_seed(k))
    q[0] = q[1]
    fig = show_memory(q, [f'class number {i}' for i in range(k)], palette(k))
    fig.canvas.draw()
    boxes = [Text.get_window_extent(t) for t in fig.axes[0].texts]
    assert 1 <= len(boxes) <= k and (k > 12 or len(boxes) == k)
    for i, a in enumerate(boxes):
        assert a.x0 >= 0 and a.x1 <= fig.bbox.x1
        assert not any(a.overlaps(b) for b in boxes[:i])
    if len(boxes) < k:
        assert f'{k - len(boxes)} names left out' in fig.axes[0].get_title()


def test_memory_by_eigenvectors():
    q = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).double()
    x = show_memory(q, list('abcdefghi')).axes[0].collections[0].get_offsets().data
    values, vectors = torch.linalg.eigh((q - q.mean(0)).T @ (q - q.mean(0)))
    want = (q - q.mean(0)) @ vectors[:, [-1, -2]]
    torch.testing.assert_close(torch.as_tensor(x).double().abs(), want.abs(), atol=1e-4, rtol=1e-4)
