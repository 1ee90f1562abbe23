"""The commands, with their options: `COMMANDS`.

`onediff_jax/commands/NAME.py` has a function `run` for each.  This page imports none of them, since
they import JAX: help and refusals of options come at once.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

TEXT, NUMBER, COUNT = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
SWITCH, SEVERAL = flags.DEFINE_boolean, flags.DEFINE_multi_string
CONFIG = config_flags.DEFINE_config_file
REQUIRED = object()
AT_LEAST_1, AT_LEAST_0 = {"lower_bound": 1}, {"lower_bound": 0}
EXPORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPE_NAMES = [*EXPORT_DTYPES, *EXPORT_DTYPES.values()]


def CHOICE(name, default, help, enum_values, flag_values):  # noqa: N802 - as absl's
    """An option with one of a few values, with its arguments in the order of the others."""
    flags.DEFINE_enum(name, default, enum_values, help, flag_values=flag_values)


class Option(NamedTuple):
    """How one option of a command is read: by which of absl's flags, its default and its help."""

    kind: Callable
    default: Any
    help: str
    limits: Mapping[str, Any] = {}


class Command(NamedTuple):
    """What `--help` says of a command, its options, and what follows from an interruption."""

    help: str
    example: str
    options: dict[str, Option]
    interrupted: str = "the same command begins again"


CONFIG_FILE = Option(CONFIG, REQUIRED, "the run's file, such as configs/scenes_tiny.py")
WORKDIR = "where checkpoints, metrics and images go"
DISTRIBUTED = Option(SWITCH, False, "this is one of several processes (launch/)")
TOPOLOGY = "a TPU slice by its cloud name, such as v3-256; none need be here"
ROOT = Option(TEXT, "", "where the run's relative paths begin now, if not at its config.root")
FORCE = Option(SWITCH, False, "replace what is at --out")

COMMANDS = {
    "train": Command(
        "Trains a configuration, from the newest checkpoint of the workdir where there is one.",
        "--config configs/scenes_tiny.py --workdir runs/scenes_tiny [--config.a.b=VALUE ...]",
        {
            "config": CONFIG_FILE,
            "workdir": Option(TEXT, REQUIRED, WORKDIR),
            "distributed": DISTRIBUTED,
        },
        "the same command goes on from the last checkpoint",
    ),
    "sample": Command(
        "Samples the target views of a task, and writes them as PNG files.",
        "--checkpoint runs/mine --task depth2image --given depth=FILE --out samples",
        {
            "checkpoint": Option(
                TEXT, REQUIRED, "a workdir (its newest checkpoint) or one step's folder"
            ),
            "task": Option(TEXT, REQUIRED, "a task, such as text2image or depth2image"),
            "given": Option(SEVERAL, [], "NAME=FILE: a condition view; may be repeated"),
            "prompt": Option(TEXT, "", "the caption, without the task's token"),
            "item": Option(TEXT, "", "subject_driven: what the references show"),
            "orbit": Option(
                TEXT,
                "",
                "multiview: AZIMUTH,ELEVATION[,DISTANCE] of every camera; ? where unknown",
            ),
            "cameras": Option(
                TEXT, None, "multiview: nerfstudio's transforms.json with a frame for every view"
            ),
            "views": Option(COUNT, None, "multiview: how many images"),
            "focal": Option(
                NUMBER,
                None,
                "multiview: of all cameras, in image widths; recovered poses keep it",
            ),
            "out": Option(TEXT, REQUIRED, "the folder for the images"),
            "seed": Option(COUNT, 0, "equal seeds give equal samples"),
            "num": Option(COUNT, 1, "how many samples", AT_LEAST_1),
            "size": Option(
                TEXT,
                None,
                "HEIGHTxWIDTH in pixels; else that of the condition views or of training",
            ),
            "text_path": Option(
                TEXT, None, "where text_encoder/ and tokenizer/ are now, if they have moved"
            ),
            "codec_path": Option(TEXT, None, "where vae/ is now, if it has moved"),
            "root": ROOT,
            # The fields of generate.SampleConfig:
            "steps": Option(COUNT, 50, "of the solver"),
            "guidance": Option(NUMBER, 4.0, "how strongly the prompt is followed; 1: as trained"),
            "negative": Option(TEXT, "", "a prompt that guidance leads away from, used unchanged"),
            "method": Option(TEXT, "euler", "of the solver: euler or heun"),
            "shift": Option(
                NUMBER, None, "a static shift; else the import's, or by the target tokens"
            ),
            "noise_scale": Option(
                NUMBER, 1.0, "factor of the target tokens by which the schedule is shifted"
            ),
            "given_time": Option(
                TEXT, "smallest", "noise level told for condition views: smallest or zero"
            ),
            "scale_factor": Option(
                NUMBER, 1.0, "of rotary positions beyond those trained: 1.1 to 1.5"
            ),
            "scale_watershed": Option(
                NUMBER, 1.0, "time, 1000 sigma, below which scale_factor interpolates"
            ),
        },
    ),
    "plan": Command(
        "Compiles a run's step for a TPU slice, and estimates its times.  Prints the memory of a "
        "device, collectives, MFU and samples a second; reads no data.  The status is 1 where "
        "the step does not fit.",
        "--config configs/stage2_multitask.py --topology v3-256",
        {
            "config": CONFIG_FILE,
            "topology": Option(TEXT, REQUIRED, TOPOLOGY),
            "json": Option(TEXT, None, "a file for the plan's numbers"),
            "states": Option(
                SWITCH, False, "prompts are read as states from caches, made by encode --states"
            ),
            "search": Option(SWITCH, False, "plan many meshes, remat policies and rows; rank them"),
            "over": Option(
                SEVERAL,
                [],
                "NAME=VALUE,VALUE: what --search tries for a setting, instead of its own choice",
            ),
        },
    ),
    "doctor": Command(
        "Checks a run before it is started.  Prints ok, warning or failed for every check, with "
        "the way out, on this machine or on all that will take part in the run.",
        "--config configs/stage2_multitask.py [--workdir DIR] [--topology v3-256]",
        {
            "config": CONFIG_FILE,
            "workdir": Option(TEXT, None, WORKDIR),
            "distributed": DISTRIBUTED,
            "topology": Option(TEXT, None, TOPOLOGY),
        },
    ),
    "check_data": Command(
        "Reads the data of a configuration as training would, and lists every bad record.  Every "
        "record (or --records of them) goes through each task that its source serves.  Prints the "
        "mixture (each source's share of each task), records and bad records by task, sizes, "
        "prompt lengths in tokens, and the padding of slots.  With --rate it measures instead how "
        "many examples a second the run's loader delivers on this machine as one of --hosts.  The "
        "status is 1 where a record is bad or the data is too slow.",
        "--config configs/mine.py --sheet sheet.png",
        {
            "config": CONFIG_FILE,
            "source": Option(TEXT, None, "only this one of config.data.sources"),
            "split": Option(TEXT, "train", "train or validation"),
            "records": Option(COUNT, None, "of a source, spread evenly", AT_LEAST_1),
            "sheet": Option(TEXT, None, "a PNG with examples of every task"),
            "json": Option(TEXT, None, "a file for the whole report"),
            "rate": Option(
                NUMBER,
                None,
                "seconds to measure examples a second, instead of checking",
                {"lower_bound": 0.1},
            ),
            "latency": Option(
                NUMBER, 0.0, "seconds that every read takes longer, for --rate", AT_LEAST_0
            ),
            "hosts": Option(COUNT, 1, "that share the rows, for --rate", AT_LEAST_1),
            "needed": Option(
                NUMBER,
                0.0,
                "examples a second that every host must get, as `plan` prints, for --rate",
                AT_LEAST_0,
            ),
        },
    ),
    "make_shards": Command(
        "Converts a source of a configuration into few large files.  Then train with "
        "config.data.sources.NAME = dict(kind='shards', path=OUT).  Both splits are written; bad "
        "records are left out and listed.  The folder appears complete or never.",
        "--config configs/mine.py --source photos --out shards/photos",
        {
            "config": CONFIG_FILE,
            "source": Option(TEXT, REQUIRED, "its name in config.data.sources"),
            "out": Option(TEXT, REQUIRED, "the folder to write"),
        },
        "nothing was written",
    ),
    "encode": Command(
        "Encodes the data of a configuration ahead of training.  OUT gets a cache of examples for "
        "every source; then train with config.data.sources.NAME = dict(kind='cache', "
        "path='OUT/NAME').  Every task that a slot holds is encoded, with conditions drawn anew in "
        "each pass.  Once all files are there, the same command checks them; see docs/caches.md.",
        "--config configs/mine.py --out caches/mine",
        {
            "config": CONFIG_FILE,
            "out": Option(
                TEXT, REQUIRED, "a folder for each source goes here; may be gs://BUCKET/..."
            ),
            "passes": Option(COUNT, 1, "times that every record is encoded", AT_LEAST_1),
            "states": Option(
                SWITCH, False, "prompts as states of a released text encoder, not as token ids"
            ),
            "shard": Option(COUNT, 0, "examples of a file; 0: as many as take 512 MiB", AT_LEAST_0),
            "batch": Option(COUNT, 16, "images, or prompts, encoded together", AT_LEAST_1),
        },
        "the same command goes on after the last whole file",
    ),
    "import_torch": Command(
        "Makes a checkpoint of a folder in the released layout.  The folder holds transformer/ and "
        "perhaps vae/, text_encoder/, tokenizer/ and scheduler/, or is such a transformer itself.  "
        "Only safetensors are read; torch is not needed.  Without vae, text_encoder and tokenizer "
        "a run that starts from the checkpoint brings its own.",
        "--source OneDiffusion --out runs/released",
        {
            "source": Option(TEXT, REQUIRED, "the released folder; may be gs://BUCKET/..."),
            "out": Option(TEXT, REQUIRED, "the folder to make"),
            "link": Option(SWITCH, False, "link to pretrained parts; do not copy"),
            "licence": Option(TEXT, None, "of the weights, where the source does not say"),
            "force": FORCE,
        },
    ),
    "export_torch": Command(
        "Writes a checkpoint's denoiser as a folder in the released layout.  The folder has the "
        "PyTorch code that runs it, a model card and manifest.json.  Adapters are merged into the "
        "matrices that they adapt; with --adapters they are written alone, for PEFT and for "
        "diffusers.  One parameter is in memory at a time; torch is not needed.",
        "--checkpoint runs/mine --out mine --ema --dtype bf16",
        {
            "checkpoint": Option(
                TEXT, REQUIRED, "a workdir (its newest checkpoint) or one step's folder"
            ),
            "root": ROOT,
            "out": Option(TEXT, REQUIRED, "the folder to make"),
            "ema": Option(SWITCH, False, "the EMA of the weights, which `sample` uses"),
            "dtype": Option(
                CHOICE,
                None,
                f"of the tensors: {', '.join(DTYPE_NAMES)}; else as they are stored",
                {"enum_values": DTYPE_NAMES},
            ),
            "shard_gb": Option(NUMBER, 10.0, "the longest file, in 1e9 bytes"),
            "frozen": Option(TEXT, None, "a folder with vae, text_encoder, tokenizer to add"),
            "link": Option(SWITCH, False, "link to these parts; do not copy"),
            "adapters": Option(SWITCH, False, "adapters alone; nothing is merged"),
            "force": FORCE,
        },
    ),
}
