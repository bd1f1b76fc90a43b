"""``treeshare models``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treeshare.cli import options
from treeshare.cli.inputs import quiet_libraries

if TYPE_CHECKING:
    from treeshare.models.outline import Outline


def models(
    model: Annotated[
        str | None, typer.Argument(help="A folder, a .gguf file, a hub id or an embedded name.")
    ] = None,
    model_option: options.SameModel = None,
    dtype: options.Dtype = "auto",
) -> None:
    """List which of transformers' models run; or say, without reading its weights, whether MODEL does.

    Exit status 1 if it does not.
    """
    model = options.one_model("models", model, model_option)
    from treeshare.errors import UnsupportedModelError
    from treeshare.models.known import known_models

    known = known_models()
    if model is None:
        for entry in known:
            print(f"{entry.name:28} {entry.verdict:9} {entry.reason or entry.features}".rstrip())
        equal = sum(entry.verdict == "equal" for entry in known)
        print(
            f"{equal} of {len(known)} compute the same as transformers; the others are rejected at loading."
        )
        return
    quiet_libraries()
    from treeshare.models.loading import outline_model

    try:
        part, outline = outline_model(model, dtype)
    except UnsupportedModelError as error:
        print(f"{model}: refused: {error}")
        raise typer.Exit(1) from error
    kind = part.whole or part.config.model_type
    checked = {entry.name: entry for entry in known}.get(kind)
    print(
        f"{model}: {kind}: runs"
        + ("" if checked else "; none of this kind was compared with transformers yet")
    )
    if part.whole:
        print(f"text only: the text model ({part.config.model_type}) of a multimodal one")
    print("\n".join(_lines(part.config, outline)))


def _lines(config: Any, outline: "Outline | None") -> list[str]:  # noqa: ANN401
    """What is known of a model that runs."""
    from treeshare.models.support import max_model_len

    longest = max_model_len(config)
    lines = [f"longest sequence: {longest:,} tokens"]
    if outline is None:
        return [*lines, "KV: known when it is loaded"]
    geometry = outline.geometry
    shapes = sorted(
        {f"{layer.num_heads} x {layer.key_width}/{layer.value_width}" for layer in geometry.layers}
    )
    lines += [
        f"weights: {outline.num_weights:,}, {str(geometry.dtype).removeprefix('torch.')}",
        f"KV: {geometry.bytes_per_token:,} bytes per token in {geometry.num_layers} layers "
        f"(heads x widths of key/value: {', '.join(shapes)})",
    ]
    lines += [
        f"  of these {size:,} bytes are read for the last {length:,} tokens only"
        for length, size in outline.kept_bytes().items()
        if length is not None
    ]
    features = sorted({feature for call in outline.calls for feature in call.spec.features})
    return [*lines, f"attention: {', '.join(features) or 'plain'}"]
