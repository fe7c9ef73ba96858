"""The authors' two backbones, read from their definition: plain functions of a state dict under the authors' names, in evaluation mode.
Slow and simple on purpose: they judge timm's networks with mapped weights."""

import torch
import torch.nn.functional as F

# --- ResNet with a deep stem, dilated: He et al. 2015; stem of three 3×3; strides of the last stages traded for dilation


def resnet(x, s, blocks=(3, 4, 6, 3), output_stride=8):
    "Four maps. A stage that gives up its stride lets its first block keep the dilation of the stage before."

    def norm(x, n):
        return F.batch_norm(
            x, s[f'{n}.running_mean'], s[f'{n}.running_var'], s[f'{n}.weight'], s[f'{n}.bias'], False, 0.0, 1e-5
        )

    at = 'backbone_net.stem.'
    for conv, bn, stride in ((0, 1, 2), (3, 4, 1), (6, 7, 1)):
        x = norm(F.conv2d(x, s[f'{at}{conv}.weight'], stride=stride, padding=1), f'{at}{bn}').relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps, reached, dilation = [], 4, 1
    for stage, n in enumerate(blocks, 1):
        before = dilation
        stride = 1 if stage == 1 else 2
        if stage > 1 and reached == output_stride:
            stride, dilation = 1, dilation * 2
        elif stage > 1:
            reached *= 2
        for b in range(n):
            p = f'backbone_net.layer{stage}.{b}.'
            st, di = (stride, before) if b == 0 else (1, dilation)
            y = norm(F.conv2d(x, s[p + 'conv1.weight']), p + 'bn1').relu()
            y = norm(F.conv2d(y, s[p + 'conv2.weight'], stride=st, padding=di, dilation=di), p + 'bn2').relu()
            y = norm(F.conv2d(y, s[p + 'conv3.weight']), p + 'bn3')
            if p + 'downsample.0.weight' in s:
                x = norm(F.conv2d(x, s[p + 'downsample.0.weight'], stride=st), p + 'downsample.1')
            x = (x + y).relu()
        maps.append(x)
    return maps


# --- Swin: Liu et al. 2021, in the form that segmentation uses: any size, a norm per stage


def index_of(w):
    "Which row of the bias table belongs to a pair of cells of a w×w window: by row and column distance."
    cells = [(i, j) for i in range(w) for j in range(w)]
    return torch.tensor([[(a[0] - b[0] + w - 1) * (2 * w - 1) + a[1] - b[1] + w - 1 for b in cells] for a in cells])


def region(i, n, w, shift):
    return 0 if i < n - w else 1 if i < n - shift else 2  # of a cell of the shifted line


def window_attention(x, s, p, heads, w, shift):
    "One picture `h w c`, already normed: pad, shift, then window after window, head by head through one softmax."
    H, W, c = x.shape
    h_, w_ = -(-H // w) * w, -(-W // w) * w
    x = F.pad(x, (0, 0, 0, w_ - W, 0, h_ - H)).roll((-shift, -shift), (0, 1))
    bias = s[p + 'relative_position_bias_table'][index_of(w).flatten()].view(w * w, w * w, heads)
    out = torch.zeros_like(x)
    for top in range(0, h_, w):
        for left in range(0, w_, w):
            t = x[top : top + w, left : left + w].reshape(w * w, c)
            q, k, v = (t @ s[p + 'qkv.weight'].T + s[p + 'qkv.bias']).split(c, 1)
            mine = [
                (region(top + i, h_, w, shift), region(left + j, w_, w, shift)) if shift else 0
                for i in range(w)
                for j in range(w)
            ]
            apart = torch.tensor([[0.0 if a == b else -100.0 for b in mine] for a in mine])
            d = c // heads
            heard = [
                ((q[:, i : i + d] @ k[:, i : i + d].T) * d**-0.5 + bias[:, :, i // d] + apart).softmax(-1)
                @ v[:, i : i + d]
                for i in range(0, c, d)
            ]
            t = torch.cat(heard, 1) @ s[p + 'proj.weight'].T + s[p + 'proj.bias']
            out[top : top + w, left : left + w] = t.view(w, w, c)
    return out.roll((shift, shift), (0, 1))[:H, :W]


def swin(x, s, depths, heads, window):
    "Four maps, each normed."

    def norm(x, n):
        return F.layer_norm(x, x.shape[-1:], s[n + '.weight'], s[n + '.bias'], 1e-5)

    x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
    x = F.conv2d(
        x, s['backbone_net.patch_embed.projection.weight'], s['backbone_net.patch_embed.projection.bias'], stride=4
    ).permute(0, 2, 3, 1)
    x, maps = norm(x, 'backbone_net.patch_embed.norm'), []
    for i, (n, g) in enumerate(zip(depths, heads)):
        for b in range(n):
            p = f'backbone_net.stages.{i}.blocks.{b}.'
            y = norm(x, p + 'norm1')
            x = x + torch.stack(
                [window_attention(one, s, p + 'attn.w_msa.', g, window, window // 2 if b % 2 else 0) for one in y]
            )
            y = F.gelu(norm(x, p + 'norm2') @ s[p + 'ffn.layers.0.0.weight'].T + s[p + 'ffn.layers.0.0.bias'])
            x = x + y @ s[p + 'ffn.layers.1.weight'].T + s[p + 'ffn.layers.1.bias']
        maps.append(norm(x, f'backbone_net.norm{i}').permute(0, 3, 1, 2))
        if i < len(depths) - 1:  # every 2×2 cells become one, channel by channel, and each channel row by row
            p = f'backbone_net.stages.{i}.downsample.'
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            b_, h, w, c = x.shape
            four = torch.stack(
                [torch.stack([x[:, r::2, q::2, ch] for r in (0, 1) for q in (0, 1)], -1) for ch in range(c)], -2
            ).reshape(b_, h // 2, w // 2, 4 * c)
            x = norm(four, p + 'norm') @ s[p + 'reduction.weight'].T
    return maps
