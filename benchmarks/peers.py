"Other ways to make an image model's frames into a video, on the same frozen base and called in the same way."

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import MotionAdapter, UNetMotionModel
from torch import nn

from tav_nb.models.temporal_block import make_temporal_layer
from tav_nb.models.temporal_unet import temporal_blocks, temporal_modules


def motion_model(unet, use_mid_block=True, max_frames=32):
    "AnimateDiff's modules (arXiv 2307.04725), diffusers' `MotionAdapter`, in the weights of a UNet"
    config = unet.config
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=8,
        motion_norm_num_groups=config.norm_num_groups,
        motion_max_seq_length=max_frames,
        use_motion_mid_block=use_mid_block,
    )
    return UNetMotionModel.from_unet2d(unet, adapter)


class MotionUNet(nn.Module):
    "A UNet with AnimateDiff's modules; what leaves a module is zero until it is trained"

    def __init__(self, stock):
        super().__init__()
        self.stock, self.config = stock, stock.config
        self.motion = motion_model(stock).requires_grad_(False)
        for name, module in self.motion.named_modules():
            if "motion_modules" in name and name.endswith("proj_out"):
                nn.init.zeros_(module.weight), nn.init.zeros_(module.bias)
        for name, p in self.motion.named_parameters():
            p.requires_grad = "motion_modules" in name

    device = property(lambda self: self.stock.device)
    dtype = property(lambda self: self.stock.conv_in.weight.dtype)

    def groups(self, lr, other_lr):
        named = [(name, p) for name, p in self.motion.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "norm" not in name]
        matrix_ids = set(map(id, matrices))
        others = [p for _, p in named if id(p) not in matrix_ids]
        return [dict(params=matrices, lr=lr, parts=1), dict(params=others, lr=other_lr, parts=0)]

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs, num_frames=None):
        if num_frames is None:
            return self.stock(x, t, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)
        added = {name: value[::num_frames] for name, value in added_cond_kwargs.items()}
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            output = self.motion(
                x.unflatten(0, (-1, num_frames)).transpose(1, 2),  # b c f h w
                t[::num_frames] if t.ndim else t,
                encoder_hidden_states,
                added_cond_kwargs=added,
            )
        output.sample = output.sample.transpose(1, 2).flatten(0, 1)
        return output


class FirstFrameAttention:
    "Spatial attention to the tokens of a clip's first frame (Text2Video-Zero, arXiv 2303.13439, section 3.3)"

    num_frames = None  # of a clip; None is the attention as it was

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if self.num_frames and encoder_hidden_states is None:
            k, v = (
                x.unflatten(0, (-1, self.num_frames))[:, :1].expand(-1, self.num_frames, -1, -1).flatten(0, 1)
                for x in (k, v)
            )
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))  # n s (h d) -> n h s d
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


class FirstFrameUNet(nn.Module):
    "A UNet with Text2Video-Zero's cross-frame attention; there is nothing to train"

    def __init__(self, stock):
        super().__init__()
        self.stock, self.config, self.attention = stock, stock.config, FirstFrameAttention()
        for block in temporal_blocks(stock).values():
            block.attn1.set_processor(self.attention)

    device = property(lambda self: self.stock.device)
    dtype = property(lambda self: self.stock.conv_in.weight.dtype)

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs, num_frames=None):
        self.attention.num_frames = num_frames
        return self.stock(x, t, encoder_hidden_states, added_cond_kwargs=added_cond_kwargs)


def move_behind_blocks(unet):
    """Temporal layers act on what leaves the blocks, after cross-attention and feed-forward layer (as in Tune-A-Video,
    arXiv 2212.11565), and no longer after the spatial attention
    """

    def move(block):
        residual, clip = block.__dict__["fuser"], []
        block.__dict__["fuser"] = lambda x, arguments: clip.append(arguments) or x
        block.register_forward_hook(lambda module, args, output: residual(output, clip.pop()) if clip else output)

    for block in temporal_blocks(unet).values():
        move(block)


def keep_every_second(unet):
    "Without the temporal layers of every second block"
    for block in list(temporal_blocks(unet).values())[1::2]:
        block.__dict__["fuser"].remove(block)
        del block.temporal_attn
        block.__dict__["fuser"] = lambda x, arguments: x


class LikeABlock(nn.Module):
    "What `make_temporal_layer` reads of a transformer block"

    def __init__(self, dim, heads):
        super().__init__()
        self.dim, self.attn1 = dim, nn.Module()
        self.attn1.heads = heads


def add_after_resnets(unet, **structure):
    "Temporal layers also behind the ResNets of the first level, at full latent resolution, where SDXL has no attention"
    state, dim = {}, unet.config.block_out_channels[0]

    def read_num_frames(module, args, kwargs):
        state["num_frames"] = kwargs.get("num_frames")

    def add(resnet):
        layer = resnet.temporal_attn = make_temporal_layer(LikeABlock(dim, 8), **structure)

        def act(module, args, output):
            if state["num_frames"] is None:
                return output
            tokens = output.flatten(2).transpose(1, 2)  # n c h w -> n (h w) c
            tokens = tokens + layer(tokens, state["num_frames"])
            return tokens.transpose(1, 2).unflatten(2, output.shape[2:])

        resnet.register_forward_hook(act)

    unet.register_forward_pre_hook(read_num_frames, with_kwargs=True, prepend=True)
    for resnet in (*unet.down_blocks[0].resnets, *unet.up_blocks[-1].resnets):
        add(resnet)


def neighbour_sum(images, weight):
    "Depthwise convolution of `[b, f, h, w, c]` with weights `[3, 3, 3, c]`; what lies outside counts as zero"
    frames, height, width = images.shape[1:4]
    padded = F.pad(images, (0, 0, 1, 1, 1, 1, 1, 1))
    return sum(
        padded[:, i : i + frames, j : j + height, k : k + width] * weight[i, j, k]
        for i in range(3)
        for j in range(3)
        for k in range(3)
    )


class NeighbourConvolution(nn.Module):
    "Depthwise convolution over three frames and over 3 by 3 tokens of each; square images"

    compiled = None

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, 3, dim))

    def forward(self, tokens, windows=None, *added):
        b, f, s, c = tokens.shape
        side, call = int(s**0.5), neighbour_sum
        if tokens.is_cuda:
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
            call = self.compiled = self.compiled or torch.compile(neighbour_sum, dynamic=False)
        return sum(added, call(tokens.view(b, f, side, side, c), self.weight.to(tokens.dtype)).reshape(tokens.shape))


def see_neighbours(unet, before=False):
    "Convolutions over time also see the tokens beside; with `before` what enters the attention has passed one too"
    for layer in temporal_modules(unet).values():
        dim = layer.conv.weight.shape[1]
        layer.conv = NeighbourConvolution(dim)
        if before:
            layer.conv_before = NeighbourConvolution(dim)
            layer.normalized_clips = partial(normalized_with_neighbours, layer, layer.normalized_clips)


def normalized_with_neighbours(layer, normalized_clips, *args, **kwargs):
    tokens, placed, x = normalized_clips(*args, **kwargs)
    return tokens, placed + layer.conv_before(tokens).view_as(placed), x
