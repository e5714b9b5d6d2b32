"""tav_nb extends SDXL with a temporal adapter, trains it on anime clips, and makes videos with it.

The names in `__all__` are the public API; README.md describes each. They are imported when they are first used (PEP 562),
so `import tav_nb` loads neither torch nor diffusers.
"""

__version__ = "0.1.0"

_MODULES = {
    "sampling.generate": ["generate", "load_video_pipeline"],
    "sampling.request": ["Keyframes", "VideoRequest"],
    "models.temporal_attention": ["TemporalSelfAttention"],
    "models.temporal_unet": ["add_temporal", "remove_temporal", "temporal_state_dict", "train_only_temporal"],
    "models.adapter_file": ["load_adapter", "save_adapter"],
    "models.windows": ["Context"],
    "models.scheduler": ["SDXLAnime_BestHQScheduler"],
    "models.base": ["load_pipeline"],
    "data.sources": ["open_source"],
    "data.prepare": ["prepare"],
    "data.buckets": ["EncodeOptions"],
    "data.shots": ["ShotOptions"],
    "data.loader": ["ClipLoader"],
    "training.config": ["TrainConfig"],
    "training.trainer": ["train"],
    "evaluation.metrics": ["measure_video"],
    "utils.video_loading": ["read_video"],
    "utils.video_writer": ["write_video"],
    "utils.errors": ["TavError"],
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'tav_nb' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"tav_nb.{_WHERE[name]}"), name)
    return value


def __dir__():
    return sorted([*globals(), *_WHERE])
