"""Self-attention over the pixels of an image."""

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.nn.conv import MaskedConv2d
from tinygen.nn.module import Module


class CausalSelfAttention(Module):
    """Multi-head self-attention in which a pixel sees itself and all before it in raster order: (N, channels, H, W) ->
    the same.

    Each pixel has a query, a key and a value in each of ``heads`` heads, all of channels / heads numbers. Its output in
    a head is the mean of the values it sees, weighted by how well their keys fit its query.
    ``qkv`` computes the three from the pixel's channels, ``out`` the result from those of all heads.
    Raises ValueError where ``heads`` does not divide the channels.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    """

    def __init__(self, channels: int, heads: int, *, rng, gain: float = 1.0):
        """``gain``: of the initial weights of ``out``; 0 for a residual branch that starts at zero."""
        self.heads, channels = check.count("heads", heads), check.count("channels", channels)
        if channels % self.heads:
            raise ValueError(f"CausalSelfAttention: {heads} heads must divide {channels} channels")
        self.qkv = MaskedConv2d("B", channels, 3 * channels, 1, rng=rng)
        self.out = MaskedConv2d("B", channels, channels, 1, rng=rng, gain=gain)

    def forward(self, x, at=None):
        """``at``: the ``PixelCache`` for one pixel, with x (channels, N); None for whole images."""
        if at is not None:
            return at(self, x)
        x = check.tensor("CausalSelfAttention: x", x, "N", self.out.weight.shape[0], "H", "W")
        n, _, height, width = x.shape
        qkv = self.qkv(x).reshape(n, 3, self.heads, -1, height * width).transpose(1, 0, 2, 4, 3)
        y = ops.scaled_dot_product_attention(*qkv, is_causal=True)  # (N, heads, H W, channels / heads)
        return self.out(y.transpose(0, 1, 3, 2).reshape(x.shape))

    def one_pixel(self, at):
        """The function (channels, N) -> (channels, N) at a pixel. It keeps the keys and values of earlier pixels."""
        m, qkv, out = xp(at.like), self.qkv.one_pixel(at), self.out.one_pixel(at)
        d = self.out.weight.shape[1] // self.heads
        keys, values = m.zeros((2, at.n, self.heads, at.height * at.width, d), at.like.dtype)

        def attend(x):
            q, k, v = qkv(x).reshape(3, self.heads, d, at.n).transpose(0, 3, 1, 2)  # (N, heads, d) each
            i = at.row * at.width + at.column
            keys[:, :, i], values[:, :, i] = k, v
            s = (q * d**-0.5)[:, :, None] @ keys[:, :, : i + 1].swapaxes(2, 3)  # (N, heads, 1, i + 1)
            w = m.exp(s - s.max(-1, keepdims=True))
            y = w @ values[:, :, : i + 1] / w.sum(-1, keepdims=True)  # (N, heads, 1, d)
            return out(y.reshape(at.n, -1).T)

        return attend
