"""The nodes for ComfyUI, run in ComfyUI's real code: is a video that of `generate`?

python benchmarks/comfyui.py CHECKOUT [--out benchmarks/results/comfyui.json]     three minutes on the CPU

CHECKOUT is a clone of github.com/comfyanonymous/ComfyUI. It needs, beside this package, what its UNet, samplers and
nodes import: einops, torchsde, scipy, aiohttp, sentencepiece, pydantic-settings.

The tiny model is built as ComfyUI's own `UNetModel`. It has 16 groups where SDXL has 32, two or three heads, and widths
that are no multiples of the first: these numbers are set from outside, the code of ComfyUI stays as it is. Latents
after the last step are compared, from `SamplerCustomAdvanced` and from `generate`.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from sdxl_config import UNET

from tav_nb.evaluation.records import environment, write_record
from tav_nb.models.adapter_file import base_fingerprint, save_adapter
from tav_nb.models.base import load_pipeline
from tav_nb.models.temporal_state import temporal_blocks
from tav_nb.models.temporal_unet import add_temporal, remove_temporal, temporal_modules
from tav_nb.models.windows import Context
from tav_nb.sampling import comfyui
from tav_nb.sampling.generate import encode_conditioning, generate, load_video_pipeline
from tav_nb.sampling.lora import load_loras
from tav_nb.utils.errors import TavError

BOUND = 1e-3  # the largest difference of latents that is allowed
WORKFLOW = Path(__file__).with_name("comfyui_workflow.json")
REQUESTS = {
    "16 frames, prompt guidance": dict(num_frames=16, steps=12, guidance_scale=2.5, seed=0),
    "16 frames, all guidance that the adapter recommends": dict(num_frames=16, steps=12, seed=1),
    "30 frames in windows, 96 x 128 pixels": dict(num_frames=30, height=96, width=128, steps=6, seed=2),
    "a loop of 30 frames, other noise": dict(
        num_frames=30, steps=6, guidance_scale=4.0, seed=3, noise="mixed", context=Context(overlap=8, loop=True)
    ),
}
PROMPTS = ("a girl with pink hair and a blue dress walks to the left in the park", "a girl waves")


class Multiple(Fraction):
    "A width over the first one, whose product with it is an int"

    def __mul__(self, other):
        return int(Fraction(self) * other)

    __rmul__ = __mul__


def diffusers_config(unet):
    "ComfyUI's `unet_config` for a UNet of diffusers"
    config, widths = unet.config, unet.config.block_out_channels
    per_level, depths = config.layers_per_block, config.transformer_layers_per_block
    has = [kind.startswith("Cross") for kind in config.down_block_types]
    return dict(
        image_size=32,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        model_channels=widths[0],
        channel_mult=[Multiple(width, widths[0]) for width in widths],
        num_res_blocks=[per_level] * len(widths),
        transformer_depth=[depth * on for depth, on in zip(depths, has) for _ in range(per_level)],
        transformer_depth_output=[depth * on for depth, on in zip(depths, has) for _ in range(per_level + 1)],
        transformer_depth_middle=depths[-1],
        context_dim=config.cross_attention_dim,
        adm_in_channels=config.projection_class_embeddings_input_dim,
        num_classes="sequential",
        use_linear_in_transformer=True,
        use_spatial_transformer=True,
        legacy=False,
        num_heads=config.attention_head_dim[0],
        num_head_channels=-1,
        dtype=torch.float32,
    )


def comfy_model(pipe):
    "A MODEL of ComfyUI with the weights of a pipeline"
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models_base
    import comfy.utils
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    unet, betas = pipe.unet, pipe.scheduler.config

    class Operations(comfy.ops.disable_weight_init):
        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, *args, num_groups=None, num_channels=None, **kwargs):
                super().__init__(unet.config.norm_num_groups, num_channels or args[1], **kwargs)

    config = comfy.supported_models_base.BASE(diffusers_config(unet))
    config.unet_config.update(num_heads=unet.config.attention_head_dim[0], num_head_channels=-1)
    config.sampling_settings = dict(linear_start=betas.beta_start, linear_end=betas.beta_end)
    config.latent_format, config.custom_operations = comfy.latent_formats.LatentFormat(), Operations
    model = comfy.model_base.SDXL(config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    model.embedder = Timestep(unet.config.addition_time_embed_dim)
    names, state = comfy.utils.unet_to_diffusers(config.unet_config), unet.state_dict()
    renamed = {names[key]: value.clone() for key, value in state.items() if "temporal_attn" not in key}
    model.diffusion_model.load_state_dict(renamed)
    heads = {block.dim: block.attn1.heads for block in temporal_blocks(unet).values()}
    for block in model.diffusion_model.modules():
        if type(block).__name__ == "BasicTransformerBlock":
            block.n_heads = heads[block.norm1.normalized_shape[0]]
            block.d_head = block.norm1.normalized_shape[0] // block.n_heads
            for attention in (block.attn1, block.attn2):
                attention.heads, attention.dim_head = block.n_heads, block.d_head
    model.diffusion_model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def conditioning(pipe, prompt, num_frames, height, width, scale):
    "CONDITIONINGs of ComfyUI, with the prompt and without, from the embeddings that `generate` uses"
    arguments = encode_conditioning(pipe, prompt, num_frames, height, width, scale)
    tokens, pooled = arguments["encoder_hidden_states"], arguments["added_cond_kwargs"]["text_embeds"]
    size = dict(width=width, height=height)
    return [[[tokens[[i]], dict(pooled_output=pooled[[i]], **size)]] for i in (-1, 0)]


def sample(pipe, model, adapter, prompt, request, with_adapter=True, noise=None):
    "The latents that ComfyUI's nodes make for a request, without *Apply Temporal Adapter* or with other noise if asked"
    import comfy_extras.nodes_custom_sampler as custom

    made_for = pipe.unet.config.sample_size * pipe.vae_scale_factor
    frames, height, width = request["num_frames"], request.get("height", made_for), request.get("width", made_for)
    scale = request.get("guidance_scale") or adapter.metadata["guidance_scale"]
    context, guidance = request.get("context") or Context(), (0, 0) if "guidance_scale" in request else (-1, -1)
    if with_adapter:
        overlap = -1 if context.overlap is None else context.overlap
        (model,) = comfyui.ApplyTemporalAdapter().apply(model, adapter, *guidance, overlap, context.loop)
    if noise is None:
        kind = request.get("noise", "adapter")
        (noise,) = comfyui.CorrelatedNoiseNode().make(adapter, request["seed"], kind, -1, context.loop)
    (guider,) = custom.CFGGuider().get_guider(model, *conditioning(pipe, prompt, frames, height, width, scale), scale)
    (sampler,) = custom.KSamplerSelect().get_sampler("dpmpp_2m")
    (sigmas,) = custom.BasicScheduler().get_sigmas(model, "karras", request["steps"], 1.0)
    latent = dict(samples=torch.zeros(frames, 4, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor))
    return custom.SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latent)[0]["samples"]


def wanted(pipe, prompt, request):
    "The latents after the last step of `generate`"
    seen, off = [], dict(guidance_min_sigma=0.0, temporal_guidance=0.0)
    options = {**(off if "guidance_scale" in request else {}), **request}
    generate(prompt, pipe, callback=lambda step, t, latents: seen.append(latents.clone()), **options)
    return seen[-1]


def compare(pipe, model, adapter, kind):
    rows = []
    for n, (name, request) in enumerate(REQUESTS.items()):
        prompt, start = PROMPTS[n % len(PROMPTS)], time.monotonic()
        expected = wanted(pipe, prompt, request)
        latents = sample(pipe, model, adapter, prompt, request)
        without = sample(pipe, model, adapter, prompt, request, with_adapter=False)
        rows.append(
            dict(
                adapter=kind,
                request=name,
                largest_difference=(latents - expected).abs().max().item(),
                without_the_adapter=(without - expected).abs().max().item(),
                std_of_the_latents=expected.std().item(),
                seconds=round(time.monotonic() - start, 1),
            )
        )
        print(rows[-1], flush=True)
    return rows


def compare_lora(pipe, model, adapter, folder):
    "A row with a LoRA on the spatial attention, in kohya's names, read by `load_loras` and by ComfyUI"
    import comfy.sd

    draw, tensors = torch.Generator().manual_seed(0), {}
    for name, block in temporal_blocks(pipe.unet).items():
        layer = f"lora_unet_{name}.attn1.to_q".replace(".", "_")
        tensors[f"{layer}.lora_down.weight"] = torch.randn(4, block.dim, generator=draw) * 0.05
        tensors[f"{layer}.lora_up.weight"] = torch.randn(block.attn1.inner_dim, 4, generator=draw) * 0.05
        tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    path = Path(folder) / "lora.safetensors"
    save_file(tensors, path)
    request = replace_request(steps=8, seed=4)
    plain = wanted(pipe, PROMPTS[0], request)
    load_loras(pipe, [(path, 0.8)])
    expected = wanted(pipe, PROMPTS[0], request)
    load_loras(pipe, [])
    (with_lora, _) = comfy.sd.load_lora_for_models(model, None, load_file(path), 0.8, 0)
    latents = sample(pipe, with_lora, adapter, PROMPTS[0], request)
    return dict(
        adapter="shipped",
        request="a LoRA of weight 0.8",
        largest_difference=(latents - expected).abs().max().item(),
        without_the_lora=(plain - expected).abs().max().item(),
    )


def check_ksampler(pipe, model, adapter):
    "KSampler draws its own noise: with it the custom sampler gives the same latents, and the base alone gives others"
    import comfy_extras.nodes_custom_sampler as custom
    import nodes

    request = replace_request(num_frames=6, steps=4)
    size, scale = pipe.unet.config.sample_size * pipe.vae_scale_factor, request["guidance_scale"]
    sides = conditioning(pipe, PROMPTS[0], 6, size, size, scale)
    latent = dict(samples=torch.zeros(6, 4, size // pipe.vae_scale_factor, size // pipe.vae_scale_factor))
    (patched,) = comfyui.ApplyTemporalAdapter().apply(model, adapter, 0, 0)
    made = {
        name: nodes.KSampler().sample(one, request["seed"], 4, scale, "dpmpp_2m", "karras", *sides, latent)[0][
            "samples"
        ]
        for name, one in (("adapter", patched), ("base", model))
    }
    (noise,) = custom.RandomNoise().get_noise(request["seed"])
    expected = sample(pipe, model, adapter, PROMPTS[0], request, noise=noise)
    differences = {name: (value - expected).abs().max().item() for name, value in made.items()}
    assert differences["adapter"] < BOUND < differences["base"], differences
    return differences


def block_adapter(folder):
    "A pipeline with an adapter of random weights that has convolution and feed-forward layer, and its file"
    pipe = load_video_pipeline()
    advice = {name: pipe.unet.temporal_config[name] for name in ("noise", "noise_strength", "guidance_scale")}
    remove_temporal(pipe.unet)
    torch.manual_seed(0)
    add_temporal(pipe.unet, conv_size=3, ff_ratio=0.5, attention_ratio=0.5)
    pipe.unet.temporal_config.update(advice, guidance_min_sigma=0.3, temporal_guidance=0.5)
    for layer in temporal_modules(pipe.unet).values():
        for parameter in layer.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return pipe, save_adapter(pipe.unet, folder, **advice, guidance_min_sigma=0.3, temporal_guidance=0.5)


def check_sdxl_layout():
    "ComfyUI's map of names for SDXL, and the fingerprint of the blocks that are found in its UNet of SDXL's size"
    import comfy.model_detection
    import comfy.utils
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        stock = UNet2DConditionModel(**UNET)
    names = comfy.utils.unet_to_diffusers(diffusers_config(stock))
    state = {f"model.diffusion_model.{names[key]}": value for key, value in stock.state_dict().items()}
    config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
    settings = {key: value for key, value in config.unet_config.items() if key != "disable_unet_model_creation"}
    unet = UNetModel(**settings, device="meta")
    blocks = comfyui.read_blocks(unet)
    base, keys = comfyui.base_of_blocks(blocks, len(settings["channel_mult"]), settings["num_res_blocks"][0] + 1)
    theirs = {names[f"{name}.norm1.weight"].removesuffix(".norm1.weight"): name for name in temporal_blocks(stock)}
    assert {comfyui.block_key(name): ours for name, ours in theirs.items()} == keys
    assert base_fingerprint(base) == base_fingerprint(stock)
    return dict(detected=type(config).__name__, blocks=len(keys), fingerprint=base_fingerprint(base))


def refusals(model, adapter, pipe):
    "What each mistake is answered with"
    import comfy.ldm.modules.attention as attention

    messages, request = {}, replace_request(num_frames=4, steps=1)

    def ask(name, function):
        try:
            function()
        except TavError as error:
            messages[name] = str(error).replace(str(adapter.path), "ADAPTER")
            assert "\n" not in messages[name]
        else:
            raise SystemExit(f"{name}: taken")

    (patched,) = comfyui.ApplyTemporalAdapter().apply(model, adapter)
    ask("the adapter twice", lambda: comfyui.ApplyTemporalAdapter().apply(patched, adapter))
    other = load_pipeline()
    other.unet = narrow_unet()
    ask("another base", lambda: comfyui.ApplyTemporalAdapter().apply(comfy_model(other), adapter))
    forward = attention.BasicTransformerBlock.forward

    def moved(self, x, context=None, transformer_options=None):
        return forward(self, x, context, {**transformer_options, "patches": {}})

    attention.BasicTransformerBlock.forward = moved
    try:
        ask("middle_patch is gone", lambda: sample(pipe, model, adapter, PROMPTS[0], request))
    finally:
        attention.BasicTransformerBlock.forward = forward
    return messages


def replace_request(**changes):
    return {**next(iter(REQUESTS.values())), **changes}


def narrow_unet():
    config = dict(load_pipeline().unet.config)
    return UNet2DConditionModel.from_config({**config, "block_out_channels": [64, 64, 96]}).eval()


def check_memory(model, adapter):
    "The layers are loaded and unloaded by ComfyUI, as one model beside the UNet"
    from comfy import model_management

    (patched,) = comfyui.ApplyTemporalAdapter().apply(model, adapter)
    (again,) = comfyui.ApplyTemporalAdapter().apply(model, adapter)
    (patcher,), (other,) = (one.get_additional_models_with_key("tav_nb") for one in (patched, again.clone()))
    assert patcher.model is other.model and not model.get_additional_models_with_key("tav_nb")
    model_management.load_models_gpu([patched, *patched.get_nested_additional_models()])
    loaded = [one.model.model for one in model_management.current_loaded_models]
    assert patcher.model in loaded and patcher.loaded_size() == patcher.model_size() > 0
    model_management.unload_all_models()
    patcher.partially_load(torch.device("cpu"), extra_memory=1)  # of one byte that is free
    assert patcher.loaded_size() == patcher.model_size() and patcher.partially_unload(torch.device("cpu"), 1) == 0
    patcher.detach()
    assert patcher.model not in [one.model.model for one in model_management.current_loaded_models]
    return patcher.model_size()


def check_workflow(checkout):
    "ComfyUI's own check of the workflow, with a checkpoint of the name that stands in it"
    import execution
    import folder_paths
    import nodes

    with tempfile.TemporaryDirectory() as folder:  # the line that the chapter puts into `custom_nodes`
        ours = Path(folder) / "tav_nb_nodes.py"
        ours.write_text("from tav_nb.sampling.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS\n")
        assert asyncio.run(nodes.load_custom_node(str(ours)))
    for name in ("nodes_custom_sampler.py", "nodes_images.py"):
        asyncio.run(nodes.load_custom_node(str(checkout / "comfy_extras" / name), set(), "comfy_extras"))
    prompt = json.loads(WORKFLOW.read_text())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sd_xl_base_1.0.safetensors").touch()
        folder_paths.add_model_folder_path("checkpoints", folder, is_default=True)
        valid, error, outputs, errors = asyncio.run(execution.validate_prompt("workflow", prompt, None))
        assert valid and not errors, (error, errors)
        broken = json.loads(WORKFLOW.read_text().replace("TavCorrelatedNoise", "TavNoSuchNode"))
        assert not asyncio.run(execution.validate_prompt("workflow", broken, None))[0]
    return dict(file=WORKFLOW.name, nodes=len(prompt), outputs=outputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of ComfyUI's code")
    parser.add_argument("--commit", help="its commit, if the folder is not a git repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "comfyui.json")
    args = parser.parse_args()
    if not (args.checkout / "comfy" / "samplers.py").is_file():
        raise SystemExit(f"{args.checkout}: not ComfyUI's code, comfy/samplers.py is missing")
    git = ["git", "-C", args.checkout, "rev-parse", "HEAD"]
    commit = args.commit or subprocess.run(git, capture_output=True, text=True).stdout.strip()
    if not commit:
        raise SystemExit(f"{args.checkout}: not a git repository; --commit says which one it is")
    sys.path.insert(0, str(args.checkout))
    sys.argv = [sys.argv[0], "--cpu"]  # of ComfyUI
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfyui_version
    import utils.extra_config  # noqa: F401  before ComfyUI's folders hide it, as in its main.py

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        pipe, rows = load_video_pipeline(), []
        model, (adapter,) = comfy_model(pipe), comfyui.LoadTemporalAdapter().load("tiny-adapter")
        sdxl, size = check_sdxl_layout(), check_memory(model, adapter)
        messages, workflow = refusals(model, adapter, pipe), check_workflow(args.checkout)
        rows += compare(pipe, model, adapter, "shipped")
        rows.append(compare_lora(pipe, model, adapter, folder))
        ksampler = check_ksampler(pipe, model, adapter)
        block_pipe, path = block_adapter(folder)
        block = comfyui.open_comfy_adapter(path)
        rows += compare(block_pipe, model, block, "convolution and feed-forward layer, random weights")
    worst = max(row["largest_difference"] for row in rows)
    write_record(
        args.out,
        comfyui=dict(version=comfyui_version.__version__, commit=commit),
        environment=environment("cpu"),
        largest_difference=worst,
        bound=BOUND,
        rows=rows,
        ksampler_from_custom_sampler=ksampler,
        sdxl=sdxl,
        bytes_under_comfyui=size,
        refusals=messages,
        workflow=workflow,
    )
    print(f"largest difference {worst:.2g}, {BOUND:g} is allowed")
    return int(not worst <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
