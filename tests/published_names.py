"""The names of the tensors of published models, made from their architecture."""

from collections.abc import Iterator


def sdxl_unet() -> list[str]:
    """The U-Net of Stable Diffusion XL: 1,680 tensors."""
    outside = ["conv_in", "conv_norm_out", "conv_out"]
    outside += [f"{place}_embedding.linear_{i}" for place in ("time", "add") for i in (1, 2)]
    outside += [f"down_blocks.{i}.downsamplers.0.conv" for i in (0, 1)]
    outside += [f"up_blocks.{i}.upsamplers.0.conv" for i in (0, 1)]
    names = [*_affine(*outside), *_attention("mid_block.attentions.0", 10)]
    for i in range(2):
        names += _resnet(f"mid_block.resnets.{i}", shortcut=False)
    for side, resnets, depths in (("down", 2, (0, 2, 10)), ("up", 3, (10, 2, 0))):
        for block, depth in enumerate(depths):
            for i in range(resnets):
                widens = side == "up" or (block > 0 and i == 0)
                names += _resnet(f"{side}_blocks.{block}.resnets.{i}", shortcut=widens)
                names += _attention(f"{side}_blocks.{block}.attentions.{i}", depth) if depth else []
    return sorted(names)


def mixtral(experts: int, layers: int = 32) -> list[str]:
    """Mixtral 8x7B with 8 experts a layer."""
    layer = ["block_sparse_moe.gate", "input_layernorm", "post_attention_layernorm"]
    layer += [f"self_attn.{p}_proj" for p in "qkvo"]
    layer += [f"block_sparse_moe.experts.{i}.w{w}" for i in range(experts) for w in (1, 2, 3)]
    inside = [f"model.layers.{i}.{t}.weight" for i in range(layers) for t in layer]
    return sorted([*inside, "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])


def llava() -> list[str]:
    """LLaVA 1.5 7B: CLIP's vision tower of 24 layers, a projector and Llama with 32 layers."""
    tower = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    tower += [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
    embeddings = ("class_embedding", "patch_embedding.weight", "position_embedding.weight")
    names = [f"vision_tower.vision_model.embeddings.{t}" for t in embeddings]
    names += _affine("vision_tower.vision_model.pre_layrnorm", "vision_tower.vision_model.post_layernorm")
    names += _affine(*(f"vision_tower.vision_model.encoder.layers.{i}.{t}" for i in range(24) for t in tower))
    names += _affine("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
    layer = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    layer += ["input_layernorm", "post_attention_layernorm"]
    names += [f"language_model.model.layers.{i}.{t}.weight" for i in range(32) for t in layer]
    ends = ("model.embed_tokens", "model.norm", "lm_head")
    return sorted([*names, *(f"language_model.{t}.weight" for t in ends)])


def _affine(*modules: str) -> Iterator[str]:
    return (f"{module}.{t}" for module in modules for t in ("weight", "bias"))


def _resnet(block: str, *, shortcut: bool) -> Iterator[str]:
    modules = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"] + ["conv_shortcut"] * shortcut
    return _affine(*(f"{block}.{m}" for m in modules))


def _attention(block: str, depth: int) -> Iterator[str]:
    yield from _affine(*(f"{block}.{m}" for m in ("norm", "proj_in", "proj_out")))
    with_bias = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2", "attn1.to_out.0", "attn2.to_out.0")
    for one in (f"{block}.transformer_blocks.{i}" for i in range(depth)):
        yield from _affine(*(f"{one}.{m}" for m in with_bias))
        yield from (f"{one}.attn{i}.to_{p}.weight" for i in (1, 2) for p in "qkv")
