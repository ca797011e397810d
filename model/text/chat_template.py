"""The conversation templates in Jinja, for ``apply_chat_template`` of transformers."""

from __future__ import annotations

import json
from string import Template

from .conversation import IMAGE, OURS, SEG_MARK, Conversation
from .tokens import SegCodebook, seg_strings

# Every value is a literal of JSON, which Jinja reads as its own. Line breaks are cut by the dashes.
_JINJA = Template("""
{{- $head -}}

{%- set images = namespace(count=0) -%}
{%- for message in messages if message['content'] is not string -%}
  {%- set found = message['content'] | selectattr('type', 'equalto', 'image') | list | length -%}
  {%- set images.count = images.count + found -%}
{%- endfor -%}
{%- if images.count > 1 -%}
  {{- raise_exception('a conversation is about one image at most') -}}
{%- elif images.count -%}
  {{- $image -}}
{%- endif -%}

{%- for message in messages -%}
  {%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
    {{- raise_exception('roles have to be user, assistant, user, and so on') -}}
  {%- endif -%}
  {%- set words = message['content'] -%}
  {%- if words is not string -%}
    {%- set words = words | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
  {%- endif -%}
  {%- set words = words | replace($ours, $replacement) -%}
  {%- if message['role'] == 'assistant' -%}
    {{- ' ' + (words | replace($seg, $group) | replace($written_group, $group)) + $after_answer -}}
  {%- else -%}
    {%- if not loop.first -%}
      {{- $before_question -}}
    {%- endif -%}
    {{- words + $before_answer -}}
  {%- endif -%}
{%- endfor -%}
""")


def chat_template(conversation: Conversation, codebook: SegCodebook) -> str:
    """A conversation template in Jinja: what ``Conversation.render`` writes, for messages.

    An image stands before the first question, wherever the messages put it. Marks in what is said are letters, the
    token groups of an assistant's answer excepted. A question is always followed by what opens its answer.
    """
    group = seg_strings(codebook.scales, codebook.tokens)
    values = {
        "head": conversation.head,
        "image": IMAGE,
        "before_question": conversation.before_question,
        "before_answer": conversation.before_answer,
        "after_answer": conversation.after_answer,
        "ours": OURS,
        "replacement": "\N{REPLACEMENT CHARACTER}",
        "seg": SEG_MARK,
        "group": " ".join(OURS + token for token in group),
        "written_group": codebook.group_text,
    }
    return _JINJA.substitute({name: json.dumps(value) for name, value in values.items()})
