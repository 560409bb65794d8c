"""The models in idiomatic PyTorch, on a flat list of weights in the order of tinygen's layers.

Each takes ``(w, x)``, w an iterator over the weights. Most return the same loss as in tinygen; PixelCNN, Gated
PixelCNN, PixelRNN and PixelTransformer return the logits. What a loss draws may be given in ``noise``.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F


def tensor(array, layout=torch.contiguous_format, device="cpu"):
    """A leaf with a copy of the array; ``layout``: the memory format of images and filters."""
    layout = layout if array.ndim == 4 else torch.contiguous_format
    return torch.tensor(array, device=device).to(memory_format=layout).requires_grad_()


def trainer(loss, weights, x, layout=torch.contiguous_format, device="cpu"):
    """``run(n)``: n training steps; ``gradients(*noise)``: loss and gradients as NumPy arrays."""
    weights, batch = [tensor(w, layout, device) for w in weights], tensor(x, layout, device).detach()
    adam = torch.optim.Adam(weights, 1e-4)

    def backward(*noise):
        adam.zero_grad()
        value = loss(iter(weights), batch, *noise)
        value.backward()
        return value

    def gradients(*noise):
        value = backward(*(torch.tensor(a, device=device) for a in noise))
        return value.item(), [w.grad.cpu().numpy() for w in weights]

    def run(n):
        for _ in range(n):
            backward()  # not gradients(), which would wait for a GPU
            adam.step()

    return run, gradients


def operation(function, inputs, g):
    """``run(n)``: n times forward and backward; ``gradients()``: the sum of g times the result, and its gradients."""

    def once():
        y = function(*inputs)
        return y, torch.autograd.grad(y, inputs, g)

    def gradients():
        y, found = once()
        return (y * g).sum().item(), [t.numpy() for t in found]

    def run(n):
        for _ in range(n):
            once()

    return run, gradients


def sampler(network, weights, shape, device="cpu"):
    """``run(pixels)``: sample this many pixels of n grey images, evaluating the whole network for each pixel."""
    weights, (n, height, width) = [torch.tensor(w, device=device) for w in weights], shape

    def run(pixels):
        images = torch.zeros(n, 1, height, width, device=device)
        with torch.no_grad():
            for i in range(pixels):
                row, column = divmod(i % (height * width), width)
                p = torch.sigmoid(network(iter(weights), images)[:, 0, row, column])
                images[:, 0, row, column] = torch.bernoulli(p)

    return run


@functools.cache
def mask(kind, kh, kw):
    """(kh, kw): 1 in the rows above and, in the pixel's own row, to the left ("A"), up to the centre ("B"), everywhere
    ("rows") or nowhere ("above")."""
    m = np.zeros((kh, kw), np.float32)
    m[: kh // 2] = 1
    m[kh // 2, : {"A": kw // 2, "B": kw // 2 + 1, "rows": kw, "above": 0}[kind]] = 1
    return m


@functools.cache
def mask_on(device, kind, kh, kw):
    return torch.tensor(mask(kind, kh, kw), device=device)


def masked(kind, w, x, stride=1):
    weight, bias = next(w), next(w)
    kh, kw = weight.shape[2:]
    return F.conv2d(x, weight * mask_on(x.device, kind, kh, kw), bias, stride, (kh // 2, kw // 2))


def pointwise(w, x):
    return F.conv2d(x, next(w), next(w))


@functools.cache
def earlier(outputs, inputs, pixels, strict, device):
    """(outputs, inputs): 1 where an output's rank is at least that of an input, or above it if ``strict``.

    Ranks go from 0 to pixels - 1 for pixels, and evenly from 0 to pixels - 2 for hidden units, of another number.
    """
    ranks = [np.arange(n) * (pixels - (n != pixels)) // n for n in (outputs, inputs)]
    mask = ranks[0][:, None] > ranks[1] if strict else ranks[0][:, None] >= ranks[1]
    return torch.tensor(mask.astype(np.float32), device=device)


def masked_linear(w, x, pixels, strict):
    weight, bias = next(w), next(w)
    return F.linear(x, weight * earlier(*weight.shape, pixels, strict, x.device), bias)


def bernoulli(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def fvsbn(w, x):
    x = x.flatten(1)
    return bernoulli(masked_linear(w, x, x.shape[1], True), x)


def nade(w, x):
    x, (into, out, b, c) = x.flatten(1), w
    terms = x[:, :, None] * into  # (N, pixels, hidden)
    h = torch.sigmoid(c + torch.cumsum(terms, 1) - terms)
    return bernoulli((h * out[:, 0]).sum(2) + b[:, 0], x)


def made(w, x):
    x, pixels = x.flatten(1), x[0].numel()
    h = F.relu(masked_linear(w, x, pixels, False))
    return bernoulli(masked_linear(w, h, pixels, True) + masked_linear(w, x, pixels, True), x)


def equalized(x, u):
    """Whole numbers below 256 plus noise u -> [-1, 1] by a histogram, here an even one, and log |det| (N,)."""
    width, level = torch.full((256,), 2 / 256, dtype=x.dtype, device=x.device), x.long()
    left = torch.cumsum(width, 0) - width - 1
    v = (torch.rand_like(x) if u is None else u) * width[level] + left[level]
    return v, torch.log(width)[level].sum((1, 2, 3))


@functools.cache
def coupling_mask(kind, device, *shape):
    """0 and 1 in ``shape`` (C, H, W): the "board" of an image, that of squares which are channels, or their "half"."""
    c = shape[0]
    mask = {
        "board": 1 - np.indices(shape).sum(0) % 2,
        "squares": np.tile([1, 0, 0, 1], -(-c // 4))[:c].reshape(c, 1, 1),
        "half": (np.arange(c) < c // 2).reshape(c, 1, 1),
    }[kind]
    return torch.tensor(mask.astype(np.float32), device=device)


def scaled(w, x):
    log_scale = next(w)
    return x * torch.exp(log_scale).reshape(x.shape[1:]), log_scale.sum()


def affine(w, x, mask, blocks=1):
    """An affine coupling: y and log |det dy/dx|."""
    h = F.conv2d(x * mask, next(w), next(w), padding=1)
    for _ in range(blocks):
        y = F.conv2d(F.relu(h), next(w), next(w), padding=1)
        h = h + pointwise(w, F.relu(y))
    t, s = F.conv2d(F.relu(h), next(w), next(w), padding=1).chunk(2, 1)
    s = torch.tanh(s) * (next(w).reshape(-1, 1, 1) * (1 - mask))
    return x * torch.exp(s) + t * (1 - mask), s.sum((1, 2, 3))


def nice(w, x, u=None, couplings=4, layers=3):
    x, log_det = equalized(x, u)
    for i in range(couplings):
        mask = coupling_mask("board", x.device, *x.shape[1:])
        mask = mask if i % 2 else 1 - mask
        h = (x * mask).flatten(1)
        for _ in range(layers + 1):
            h = F.relu(F.linear(h, next(w), next(w)))
        x = x + (1 - mask) * F.linear(h, next(w), next(w)).reshape(x.shape)
    x, d = scaled(w, x)
    return (F.softplus(x) + F.softplus(-x)).sum() / len(x) - (log_det + d).mean()


def multiscale(layers, x, log_det, scales=2):
    """z (N, D) and log |det| of ``layers(x) -> x, log_det`` at each scale, after which half of the channels leaves."""
    left = []
    for scale in range(scales):
        x, d = layers(F.pixel_unshuffle(x, 2))
        log_det = log_det + d
        if scale + 1 < scales:
            x, leaves = x.chunk(2, 1)
            left.append(leaves.flatten(1))
    return torch.cat([*left, x.flatten(1)], 1), log_det


def soft_uniform(w, z, log_det):
    rate = torch.exp(-next(w))
    ends = F.softplus(-(z + 1) * rate) + F.softplus((z - 1) * rate)
    return -((torch.log(-torch.expm1(-2 * rate)) - math.log(2) - ends).sum(1) + log_det).mean()


def realnvp(w, x, u=None, couplings=3):
    def layers(x):
        total = 0
        for kind in "squares", "half":
            mask = coupling_mask(kind, x.device, *x.shape[1:])
            for i in range(couplings, 0, -1):
                x, d = affine(w, x, mask if i % 2 else 1 - mask)
                total = total + d
        return x, total

    x, log_det = equalized(x, u)
    x, d = scaled(w, x)
    return soft_uniform(w, *multiscale(layers, x, log_det + d))


def glow(w, x, u=None, steps=6):
    def layers(x):
        total, mask = 0, coupling_mask("half", x.device, *x.shape[1:])
        for _ in range(steps):
            log_scale, bias, matrix = next(w), next(w), next(w)
            x = x * torch.exp(log_scale).reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
            x, d = affine(w, F.conv2d(x, matrix[..., None, None]), mask)
            total = total + d + x[0, 0].numel() * (log_scale.sum() + torch.linalg.slogdet(matrix)[1])
        return x, total

    return soft_uniform(w, *multiscale(layers, *equalized(x, u)))


def ffjord(w, x, e=None, steps=4, smooth=0.01):
    z, w = x.flatten(1).requires_grad_(), list(w)
    e = 2 * torch.randint(2, z.shape, device=z.device) - 1 if e is None else e
    e, cost, h = e.to(z.dtype), z.new_zeros(len(z)), -1 / steps

    def slopes(t, z):
        f = z
        for i in range(0, len(w), 4):
            weight, change, bias, bias_change = w[i : i + 4]
            f = F.linear(torch.tanh(f) if i else f, weight + t * change, bias + t * bias_change)
        (g,) = torch.autograd.grad(f, z, e, create_graph=True)  # e^T df/dz
        return f, -(g * e).sum(1) - smooth * (f**2 + g**2).sum(1)

    for i in range(steps):  # Runge-Kutta, from time 1 to 0
        t = 1 + i * h
        f1, c1 = slopes(t, z)
        f2, c2 = slopes(t + h / 2, z + h / 2 * f1)
        f3, c3 = slopes(t + h / 2, z + h / 2 * f2)
        f4, c4 = slopes(t + h, z + h * f3)
        z, cost = z + h / 6 * (f1 + 2 * f2 + 2 * f3 + f4), cost + h / 6 * (c1 + 2 * c2 + 2 * c3 + c4)
    return (0.5 * (z**2 + math.log(2 * math.pi)).sum(1) + cost).mean()


def pixelcnn(w, x, blocks=7):
    h = masked("A", w, 2 * x - 1)
    for _ in range(blocks):
        y = masked("B", w, F.relu(pointwise(w, F.relu(h))))
        h = h + pointwise(w, F.relu(y))
    return logits(w, h)


def pixelrnn(scan, w, x, layers=7):
    h = masked("A", w, 2 * x - 1)
    for _ in range(layers):
        y = scan(w, h)
        h = h + pointwise(w, y)
    return logits(w, h)


def gated(x):
    f, g = x.chunk(2, 1)
    return torch.tanh(f) * torch.sigmoid(g)


def linear_in_position(weight, x):
    rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
    down, across = weight[..., None, None]
    return down * rows[:, None] + across * columns


def gated_pixelcnn(w, x, layers=7):
    x, above = 2 * x - 1, []
    convs = [(next(w), next(w)) for _ in range(layers + 1)]
    position, v = linear_in_position(next(w), x), x
    for i, conv in enumerate(convs):
        y = masked("rows" if i else "above", iter(conv), v) + position[i]
        above.append(pointwise(w, y))
        v = gated(y)
    h = pointwise(w, gated(masked("A", w, x) + above[0]))
    for y in above[1:]:
        h = h + pointwise(w, gated(masked("B", w, h) + y))
    return logits(w, h)


def over_channels(x, weight, bias):
    return F.layer_norm(x.movedim(1, 3), weight.shape, weight, bias).movedim(3, 1)


def transformer(w, x, blocks=6, heads=2):
    n, _, height, width = x.shape
    shifted = torch.cat([next(w).expand(n, 1), (2 * x - 1).reshape(n, -1)[:, :-1]], 1)
    h = masked("B", w, shifted.reshape(x.shape)) + next(w)
    for _ in range(blocks):
        norms = [(next(w), next(w)) for _ in range(2)]
        qkv = pointwise(w, over_channels(h, *norms[0])).reshape(n, 3, heads, -1, height * width).transpose(3, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(1), is_causal=True)
        h = h + pointwise(w, y.transpose(2, 3).reshape(h.shape))
        h = h + pointwise(w, gated(masked("B", w, over_channels(h, *norms[1]))))
    return logits(w, h)


def causal_block(w, kind, h, above, skip=None):
    y = masked(kind, w, F.relu(h))
    for other in above, skip:
        if other is not None:
            y = y + pointwise(w, F.relu(other))
    y = masked(kind, w, F.relu(y))
    if kind == "rows":
        y = y + linear_in_position(next(w), y)
    return h + gated(y)


def causal_unet(w, kind, h, above, scales, blocks):
    """The outputs of all blocks; ``above``: those of the other stack, or Nones."""
    outputs = []
    for seen in above[:blocks]:
        outputs.append(h := causal_block(w, kind, h, seen))
    skips = outputs[::-1]
    if scales > 1:
        small = masked(kind, w, F.relu(h), 2)
        inner = causal_unet(w, kind, small, above[blocks:-blocks], scales - 1, blocks)
        grown = F.conv_transpose2d(F.relu(inner[-1]), next(w), next(w), 2)
        h, outputs = h + grown[:, :, : h.shape[2], : h.shape[3]], outputs + inner
    for seen, skip in zip(above[-blocks:], skips):
        outputs.append(h := causal_block(w, kind, h, seen, skip))
    return outputs


def pixelcnnpp(w, x, levels=256, scales=4, blocks=1):
    """Of grey images, whole numbers below ``levels``."""
    last = levels - 1
    scaled = 2 / last * x - 1
    above, left = masked("above", w, scaled), masked("A", w, scaled)
    seen = causal_unet(w, "rows", above, [None] * (2 * scales * blocks), scales, blocks)
    h = causal_unet(w, "B", left + above, seen, scales, blocks)[-1]
    logits, mean, log_scale = pointwise(w, F.relu(h)).chunk(3, 1)
    inverse = torch.exp(-log_scale.clamp(-7, 20))
    a, b = (((2 * x + side) / last - 1 - mean) * inverse for side in (1, -1))
    log_p = torch.where((x > 0) & (x < last), torch.log(-torch.expm1(-2 / last * inverse)), 0)
    log_p = log_p - (x < last) * F.softplus(-a) - (x > 0) * F.softplus(b)
    return -torch.logsumexp(torch.log_softmax(logits, 1) + log_p, 1).sum() / len(x)


def logits(w, h):
    return pointwise(w, F.relu(pointwise(w, F.relu(h))))


def nats(network, w, x):
    """The loss of the models that return logits."""
    return F.binary_cross_entropy_with_logits(network(w, x), x, reduction="sum") / len(x)


def cell(a, c):
    i, f, g, o = a.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def row_lstm(w, x):
    gates = masked("B", w, x)
    state, h, c = next(w), *(next(w)[None, :, None].expand(len(x), -1, x.shape[3]) for _ in range(2))
    rows = []
    for gate in gates.unbind(2):
        h, c = cell(gate + F.conv1d(h, state, padding=1), c)
        rows.append(h)
    return torch.stack(rows, 2)


def diagonal_lstm(w, x):
    gates = pointwise(w, x)
    state, (n, channels, height, width) = next(w), gates.shape
    skewed = F.pad(gates, (0, height)).reshape(n, channels, -1)[..., : height * (width + height - 1)]
    h = c = x.new_zeros(n, channels // 4, height)
    columns = []
    for gate in skewed.reshape(n, channels, height, -1).unbind(3):
        h, c = cell(gate + F.conv1d(F.pad(h, (1, 0)), state), c)
        columns.append(h)
    flat = torch.stack(columns, 3).reshape(n, channels // 4, -1)
    return F.pad(flat, (0, height)).reshape(n, channels // 4, height, -1)[..., :width]


def diagonal_bilstm(w, x):
    left = diagonal_lstm(w, x)
    right = diagonal_lstm(w, x.flip(3)).flip(3)
    return left + F.pad(right[:, :, :-1], (0, 0, 1, 0))


row_pixelrnn = functools.partial(pixelrnn, row_lstm)
diagonal_pixelrnn = functools.partial(pixelrnn, diagonal_bilstm)


def encoder(w, x):
    for _ in range(4):
        x = F.relu(F.conv2d(x, next(w), next(w), stride=2, padding=1))
    return F.linear(x.flatten(1), next(w), next(w))


def decoder(w, z, sizes=(4, 7, 14, 28)):
    h = F.relu(F.linear(z, next(w), next(w))).reshape(len(z), -1, 2, 2)
    for i, size in enumerate(sizes):
        extra = size - (2 * h.shape[2] - 1)
        h = F.conv_transpose2d(F.relu(h) if i else h, next(w), next(w), stride=2, padding=1, output_padding=extra)
    return h


def autoencoder(w, x):
    return ((decoder(w, encoder(w, x)) - x) ** 2).sum() / len(x)


def vae(w, x, eps=None):
    mean, log_var = encoder(w, x).chunk(2, 1)
    eps = torch.randn_like(mean) if eps is None else eps
    logits = decoder(w, mean + (log_var / 2).exp() * eps)
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
    return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)


def rbm(w, x, u=None):
    """One round of contrastive divergence; pixels and hidden units are centred at 1/2."""
    x, (weight, b, c) = x.flatten(1), w

    def log_p(v):
        a = F.linear(v - 0.5, weight, c)
        return (v - 0.5) @ b + (F.softplus(a) - 0.5 * a).sum(1)

    with torch.no_grad():
        u = torch.rand(len(x), sum(weight.shape), device=x.device) if u is None else u
        u, other = u.split(tuple(weight.shape), 1)
        h = (u < torch.sigmoid(F.linear(x - 0.5, weight, c))).to(x.dtype)
        v = (other < torch.sigmoid((h - 0.5) @ weight + b)).to(x.dtype)
    return log_p(v).mean() - log_p(x).mean()


def made_images(w, z, sizes):
    """A GAN's generator: z -> images, through feature maps of ``sizes``, the smallest first."""
    h = F.linear(z, next(w), next(w)).reshape(len(z), -1, *sizes[0])
    norms = [(next(w), next(w)) for _ in sizes[1:]]
    for (weight, bias), before, size in zip(norms, sizes, sizes[1:]):
        h = F.relu(F.batch_norm(h, None, None, weight, bias, training=True))
        extra = [n - (2 * m - 1) for n, m in zip(size, before)]
        h = F.conv_transpose2d(h, next(w), next(w), 2, 1, extra)
    return torch.sigmoid(h)


def judged(w, x, layers):
    """A GAN's discriminator: images -> (N,)."""
    convs = [(next(w), next(w)) for _ in range(layers)]
    for i, (weight, bias) in enumerate(convs):
        x = F.conv2d(x, weight, bias, 2, 1)
        x = F.leaky_relu(F.group_norm(x, 1, next(w), next(w)) if i else x, 0.2)
    return F.linear(x.flatten(1), next(w), next(w))[:, 0]


def gan(w, x, z=None, u=None, form="non-saturating", layers=3):
    w, sizes = list(w), [x.shape[2:]]
    for _ in range(layers):
        sizes.insert(0, [(n + 1) // 2 for n in sizes[0]])
    theirs = w[2 + 4 * layers :]  # the discriminator's weights
    z = torch.randn(len(x), w[0].shape[1], device=x.device) if z is None else z
    made = made_images(iter(w), z, sizes)
    real, fake = (judged(iter(theirs), images, layers) for images in (x, made.detach()))
    fooled = judged(iter([p.detach() for p in theirs]), made, layers)
    if form == "non-saturating":
        return (F.softplus(-real) + F.softplus(fake) + F.softplus(-fooled)).mean()
    u = torch.rand(len(x), 1, 1, 1, device=x.device) if u is None else u.to(x.dtype)
    between = (u * x + (1 - u) * made.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(judged(iter(theirs), between, layers).sum(), between, create_graph=True)
    penalty = (((slope**2).sum((1, 2, 3)) + 1e-12).sqrt() - 1) ** 2
    return (fake - real - fooled + 10 * penalty).mean()


wgan = functools.partial(gan, form="wasserstein")


def gsn(w, x, *draws, noise=0.4, walkback=4):
    w, state, total = list(w), x, 0.0
    for step in range(walkback):
        u, v = (draws[2 * step : 2 * step + 2] + (None,))[:2] if draws else (torch.rand_like(x), torch.rand_like(x))
        h = torch.where(u < noise, (u >= noise / 2).to(x.dtype), state).flatten(1) * 2 - 1
        for i in range(0, len(w) - 2, 2):
            h = F.relu(F.linear(h, w[i], w[i + 1]))
        logits = F.linear(h, w[-2], w[-1]).reshape(x.shape)
        total = total + F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        if step + 1 < walkback:
            state = (v < torch.sigmoid(logits.detach())).to(x.dtype)
    return total / walkback / len(x)


def vae_sampler(weights, n, device="cpu"):
    """``run(times)``: decode n draws from the prior, this many times."""
    decoding = [torch.tensor(w, device=device) for w in weights[10:]]  # the encoder has five layers
    latent = decoding[0].shape[1]

    def run(times):
        with torch.no_grad():
            for _ in range(times):
                torch.sigmoid(decoder(iter(decoding), torch.randn(n, latent, device=device)))

    return run


def diffusion(w, x, t=None, eps=None, scales=3, steps=1000, levels=256):
    """``t``: the steps (N,), 1 .. ``steps``, of the schedule whose log-SNR falls evenly."""
    t = torch.randint(1, steps + 1, (len(x),), device=x.device) if t is None else t
    eps = torch.randn_like(x) if eps is None else eps

    def pair():
        return next(w), next(w)

    def block(h, e, layers):
        first, affine, second = layers
        scale, shift = F.linear(e, *affine)[..., None, None].chunk(2, 1)
        y = (1 + scale) * F.conv2d(F.relu(h), *first, padding=1) + shift
        return h + F.conv2d(F.relu(y), *second, padding=1)

    time, first = pair(), pair()
    down, up = ([[pair() for _ in range(3)] for _ in range(scales)] for _ in range(2))
    smaller, larger = ([pair() for _ in range(scales - 1)] for _ in range(2))

    edge, highest = 1 - 1 / levels, math.log((3 * levels) ** 2 - 1)
    log_snr = highest - (highest + 7) * t.to(x.dtype).reshape(-1, 1, 1, 1) / steps
    signal, noise = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    z = signal * ((x + 0.5) * (2 / levels) - 1) + noise * eps
    waves = [f(z * (math.pi * 2**k)) for k in range(1, round(math.log2(levels)) + 1) for f in (torch.sin, torch.cos)]
    ends = [0.3 * torch.clamp((z - end * signal) / noise, -4, 4) for end in (-edge, edge)]
    angles = t[:, None].to(x.dtype) / steps * torch.logspace(0, math.log10(500), 16, dtype=x.dtype, device=x.device)
    e = F.relu(F.linear(torch.cat([torch.sin(angles), torch.cos(angles)], 1), *time))
    h, kept = F.conv2d(torch.cat([z, *ends, *waves], 1), *first, padding=1), []
    for i in range(scales):
        h = F.conv2d(h, *smaller[i - 1], stride=2, padding=1) if i else h
        kept.append(h := block(h, e, down[i]))
    for i in reversed(range(scales)):
        h = block(h, e, up[i])
        if i:
            extra = [n - (2 * m - 1) for n, m in zip(kept[i - 1].shape[2:], h.shape[2:])]
            h = kept[i - 1] + F.conv_transpose2d(h, *larger[i - 1], stride=2, padding=1, output_padding=extra)
    found = noise * z + F.conv2d(F.relu(h), *pair(), padding=1)
    return ((eps - found) ** 2).sum() / len(x)
