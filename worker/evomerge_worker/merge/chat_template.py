"""The chat template that a recipe asks for: `auto`, one by its name, or a template as it is."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tokenizer import load_tokenizer
from evomerge_worker.store.companions import companions, copy_files

AUTO = "auto"
"""The template that most of the models have; where several have as many, that of the anchor, else of the first."""
_FILES = ("chat_template.jinja", "chat_template.json")
_FOLDER = "additional_chat_templates/"
_TOKENIZER = "tokenizer_config.json"

_CHATML = """\
{% for m in messages %}
{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' -}}
{% endfor %}
{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""
_LLAMA3 = """\
{% for m in messages %}
{{ (bos_token if loop.first else '') ~ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' -}}
{{ m.content|trim ~ '<|eot_id|>\\n' -}}
{% endfor %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt else '' }}"""
_ALPACA = """\
{% set heads = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'} %}
{{ (messages|selectattr('role', 'equalto', 'system')|map(attribute='content')|list or [''])|last|trim ~ '\\n\\n' -}}
{% for m in messages %}
{% if m.role in heads %}
{{ '### ' ~ heads[m.role] ~ ':\\n' ~ m.content|trim ~ ('' if loop.last else '\\n\\n') -}}
{% endif %}
{% endfor %}
{{ '### Response:\\n' if add_generation_prompt and messages[-1].role != 'assistant' else '' }}"""
_EXAONE = """\
{% set indent, deep = '    ', '        ' %}
{% for m in messages %}
{{ deep ~ '[|system|][|endofturn|]\\n\\n' if loop.first and m.role != 'system' else '' -}}
{{ indent ~ '[|' ~ m.role ~ '|]' ~ m.content ~ '\\n' -}}
{{ deep ~ ('' if m.role == 'user' else '[|endofturn|]') ~ '\\n\\n' -}}
{% endfor %}
{{ indent ~ '[|assistant|]\\n' if add_generation_prompt else '' }}"""
_MISTRAL = """\
{% set first = 1 if messages[0].role == 'system' else 0 %}
{{ bos_token -}}
{% for m in messages[first:] %}
{% if (m.role == 'user') != loop.index0 is even %}
{{ raise_exception('user and assistant must take turns, the user first, behind at most one system message') }}
{% elif m.role not in ('user', 'assistant') %}
{{ raise_exception('only user and assistant may speak, behind at most one system message') }}
{% elif m.role == 'assistant' %}
{{ ' ' ~ m.content ~ eos_token -}}
{% else %}
{{ ' [INST] ' ~ (messages[0].content ~ '\\n\\n' if first and loop.first else '') ~ m.content ~ ' [/INST]' -}}
{% endif %}
{% endfor %}"""

TEMPLATES = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}
"""By mergekit's names. Each gives the text that mergekit's gives, spaces and empty lines included."""


def template_mistake(wanted: str) -> str | None:
    """What is wrong with a recipe's chat_template, as far as it can be told without the models."""
    names = [AUTO, *TEMPLATES]
    if wanted in names or not wanted.strip():
        return None
    if "{" in wanted:
        return _syntax_mistake(wanted)
    near = get_close_matches(wanted, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"names are {', '.join(names)}"
    shown = json.dumps(wanted[:60], ensure_ascii=False)
    return f"{shown} is neither a template (it has no {{) nor the name of one; {hint}"


def _syntax_mistake(template: str) -> str | None:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)
    except TemplateSyntaxError as error:
        if "generation" in (error.message or ""):  # a tag that transformers adds
            return None
        return f"is no Jinja template: {error.message} (line {error.lineno})"
    return None


def template_of(wanted: str | None, models: Sequence[Checkpoint], *, code: bool) -> str | None:
    """The template that the result of a merge of `models` gets, the anchor first; None: the one it has anyway."""
    if wanted is None or not wanted.strip():
        return None
    if wanted != AUTO:
        return TEMPLATES.get(wanted, wanted)
    held = (load_tokenizer(model, trust_remote_code=code).chat_template for model in models)
    found = [template.strip() for template in map(_default, held) if template]
    return Counter(found).most_common(1)[0][0] if found else None


def _default(template: str | Mapping[str, str] | None) -> str | None:
    """Of several templates of a model, the one that is used where none is named."""
    return template.get("default") if isinstance(template, Mapping) else template


def with_template(checkpoint: Checkpoint, template: str, *, code: bool) -> Checkpoint:
    """The checkpoint with `template` as the only chat template of its tokenizer."""
    held = TemporaryDirectory(prefix="evomerge-")
    folder = Path(held.name)
    shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
    beside = companions(checkpoint.folder, code=code)
    copy_files(checkpoint.folder, folder, [n for n in beside if n not in _FILES and not n.startswith(_FOLDER)])
    if (folder / _TOKENIZER).is_file():
        settings = json.loads((folder / _TOKENIZER).read_bytes())
        settings.pop("chat_template", None)
        (folder / _TOKENIZER).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / _FILES[0]).write_text(template, encoding="utf-8")
    return replace(checkpoint, folder=folder, shell=held)
