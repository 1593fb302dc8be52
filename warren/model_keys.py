"""Which model plays, where it is served, how it is sampled, and which weights it gets."""

from typing import Final

from broker.shared.base import PAUSE_MODES
from warren.key import COUNT, Key, integer, number, one_of, path, shell_words, text, url, variable

MODEL: Final[tuple[Key, ...]] = (
    Key(
        name="model",
        help="model that plays; `scripted` is the environment's own policy",
        parse=text,
        toml="model",
        metavar="NAME",
    ),
    Key(
        name="base_url",
        help="OpenAI-compatible endpoint of --model, up to /v1; repeat for more replicas",
        parse=url("http", "https"),
        metavar="URL",
        many=True,
    ),
    Key(
        name="judge_model",
        help="model that judges in this run, in the place of the environment's judge_model",
        parse=text,
        metavar="NAME",
    ),
    Key(
        name="judge_base_url",
        help="endpoint of --judge-model; repeat for more replicas",
        parse=url("http", "https"),
        metavar="URL",
        many=True,
    ),
    Key(
        name="api_key_env",
        help="environment variable that holds --model's API key (default: OPENAI_API_KEY)",
        parse=variable,
        metavar="VAR",
    ),
    Key(
        name="api_key_file",
        help="file that holds it instead",
        parse=path,
        metavar="FILE",
    ),
    Key(
        name="api",
        help="what --base-url speaks: chat, responses, vllm (chat with its tokens) or auto"
        " (responses at OpenAI, vllm where it is recognised, else chat)",
        parse=one_of("auto", "chat", "responses", "vllm"),
        metavar="KIND",
    ),
    Key(
        name="model_path",
        help="directory (or Hugging Face name) of --model's weights, which vLLM serves inside this"
        " process; needs the vllm extra",
        parse=text,
        metavar="PATH",
    ),
    Key(
        name="engine_args",
        help="of `vllm serve`, in one text, for --model-path: '--tool-call-parser hermes'",
        parse=shell_words,
        metavar="ARGS",
    ),
    Key(
        name="temperature",
        help="sampling temperature",
        parse=number(0, 2),
        toml="sampling.temperature",
        metavar="X",
    ),
    Key(
        name="top_p",
        help="nucleus sampling",
        parse=number(0, 1, above=True),
        toml="sampling.top_p",
        metavar="X",
    ),
    Key(
        name="max_output_tokens",
        help="per model call",
        parse=COUNT,
        toml="sampling.max_output_tokens",
        metavar="N",
    ),
    Key(
        name="seed",
        help="sampling seed, where the provider has one",
        parse=integer(0),
        toml="sampling.seed",
        metavar="N",
    ),
    Key(
        name="policy_version",
        flags=("--policy-version", "--version"),
        help="the new weights' version, which rows will carry; it never falls",
        parse=integer(0),
        metavar="N",
    ),
    Key(
        name="weights",
        flags=("--path",),
        help="directory of the new weights, as the model's servers see it",
        parse=text,
        metavar="DIR",
    ),
    Key(
        name="mode",
        help="what becomes of running requests: keep (go on with the new weights), wait (finish"
        " first) or abort (made again)",
        parse=one_of(*PAUSE_MODES),
        default="keep",
        metavar="MODE",
    ),
)
