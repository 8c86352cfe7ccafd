"""What transformers makes of text: chat templates rendered, tokenizers' ids, turns that are learned: tests/oracle/text.

writes: text
python: today

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
    venv/bin/python tools/oracle/make_text.py tests/oracle/text

templates.json   a template, messages, tools, variables and whether the reply is opened, and the text that comes of it (or none, if the
                 template refuses); `marks`: ranges of characters that `{% generation %}` marks
tokenizers/      tokenizer.json files
tokenizers.json  cases: one of these files, the files beside it, and of each text the ids with and without tokens around it, and back
turns.json       conversations: of every turn of the assistant the prompt, and what the template prints for the turn

The templates have the shape of published ones (Llama 3, Qwen2.5, Qwen3, Mistral, SmolLM2, SmolLM3, Gemma) and are shorter.
"""

import json
import sys
import tempfile
from pathlib import Path

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

transformers.logging.set_verbosity_error()

LLAMA3 = """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif (message.tool_calls is defined and message.tool_calls is not none) %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SMOLLM3 = """{# defaults #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}
{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- else -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- set reasoning_mode = reasoning_mode or ("/think" if enable_thinking else "/no_think") -%}
{{- "<|im_start|>system\\n" -}}
{{- "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}
{%- if custom_instructions -%}{{- custom_instructions + "\\n\\n" -}}{%- endif -%}
{%- if xml_tools or tools -%}
  {%- for tool in (xml_tools or tools) -%}
    {{- tool | string }}{{ "\\n" -}}
  {%- endfor -%}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n"  + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- if reasoning_mode == "/think" -%}
            {{ "<|im_start|>assistant\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- else -%}
            {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}
        {%- endif -%}
        {% endgeneration %}
    {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\\n"  + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if reasoning_mode == "/think" -%}
        {{ "<|im_start|>assistant\\n" }}
    {%- else -%}
        {{ "<|im_start|>assistant\\n" + "<think>\\n\\n</think>\\n"  }}
    {%- endif -%}
{%- endif -%}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""

# only the assistant's words are marked, and the end of the turn with them
MARKED = """{% for m in messages %}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}

{% else %}{{ m.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# nothing ends a turn
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"

TEMPLATES = dict(llama3=LLAMA3, qwen25=QWEN25, qwen3=QWEN3, mistral=MISTRAL, smollm2=SMOLLM2, smollm3=SMOLLM3,
                 gemma=GEMMA, marked=MARKED, bare=BARE)


def turn(role, content=None, **fields):
    return dict(role=role, content=content, **fields)


CALL = dict(id="call00001", type="function", function=dict(name="weather", arguments=dict(city="Zürich", days=2, exact=True, unit=None)))
TEXT_CALL = dict(id="1", type="function", function=dict(name="f", arguments='{"a": 1}'))
TOOLS = [dict(type="function", function=dict(
    name="weather", description="The weather, <soon> & later",
    parameters=dict(type="object", properties=dict(city=dict(type="string"), days=dict(type="integer", default=1.0)), required=["city"])))]

CONVERSATIONS = dict(
    one=[turn("user", "Hi")],
    reply=[turn("user", "Hi there"), turn("assistant", "Hello, I am <b>here</b>.")],
    system=[turn("system", "Be brief. /no_think"), turn("user", "  What is 2+2?\n"), turn("assistant", "  4 \n")],
    many=[turn("user", "a"), turn("assistant", "b b"), turn("user", "c\n\nc"), turn("assistant", "d"),
          turn("user", "é"), turn("assistant", "f's")],
    reasoning=[turn("user", "a"), turn("assistant", "b", reasoning_content="\nso\n"), turn("user", "c"),
               turn("assistant", "d", thinking="well")],
    think=[turn("user", "a"), turn("assistant", "<think>\nso\n</think>\n\nb"), turn("user", "c")],
    tools=[turn("user", "Weather?"), turn("assistant", None, tool_calls=[CALL]),
           turn("tool", "3 degrees", tool_call_id="call00001", name="weather"), turn("assistant", "It is cold.")],
    text_tools=[turn("user", "hi"), turn("assistant", None, tool_calls=[TEXT_CALL]),
                turn("tool", "3", tool_call_id="1"), turn("assistant", "yo")],
    parts=[turn("user", [dict(type="text", text=" hi "), dict(type="text", text="you")]), turn("assistant", "yo")],
    nulls=[turn("user", "hi", tool_calls=None, name=None), turn("assistant", "yo", tool_calls=None)],
    wrong=[turn("assistant", "first"), turn("assistant", "second")],
)

# one construct each: (template, variables)
CONSTRUCTS = [
    ("{{ x | tojson }}", dict(x={"b": [1, 2.5, None, True], "a": "é<&>\"'\n\u2028\x7f"})),
    ("{{ x | tojson(ensure_ascii=true) }}", dict(x="é𝄞\x7f\x01")),
    ("{{ x | tojson(true) }}", dict(x="é")),
    ("{{ x | tojson(false, 2) }}", dict(x={"a": [1, {}], "b": []})),
    ("{{ x | tojson(indent=4, sort_keys=true) }}", dict(x={"b": 1, "a": {"d": 2, "c": 3}})),
    ("{{ x | tojson(indent='\\t') }}", dict(x={"b": [1]})),
    ("{{ x | tojson(indent=0) }}", dict(x=[1, 2])),
    ("{{ x | tojson(separators=(',', ':')) }}", dict(x={"b": [1, 2]})),
    ("{{ x | tojson(false, none, (',', ':'), true) }}", dict(x={"b": 1, "a": 2})),
    ("{{ x | tojson(separators=[' ; ', '=']) }}", dict(x={"b": [1, 2]})),
    ("{{ x | tojson }}|{{ 1e20 | tojson }}|{{ 0.00001 | tojson }}|{{ 1.0 | tojson }}", dict(x=[1e16, 1e-7, 123456789.125])),
    ("{{ {7: 2, none: 3, true: 4, 1.5: 5} | tojson }}", {}),
    ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n'{{ '1\r\n2' }}'\rc\r\n", {}),
    ("{{ 'aéb'.find('b') }} {{ 'éaéa'.rfind('a') }} {{ 'abc'.find('z') }} {{ 'ababa'.find('a', 1) }} {{ 'ababa'.rfind('a', 0, -1) }}", {}),
    ("{{ 'aéb'.index('b') }} {{ 'éaéa'.rindex('a') }} {{ [3, 4].index(4) }}", {}),
    ("{{ 'a'.index('b') }}", {}),
    ("{% for v in [x, 'a', 1, 1.5, true, none, [1], {'a': 1}, y, (1, 2), range(3)] %}{{ v is sequence }} {{ v is iterable }} "
     "{{ v is mapping }} {{ v is string }} {{ v is number }} {{ v is integer }} {{ v is float }} {{ v is boolean }}\n{% endfor %}",
     dict(x={"a": 1}, y=[])),
    ("{{ nope is sequence }} {{ nope is iterable }} {{ nope is defined }} {{ none is none }} {{ 1 is true }} {{ true is true }} {{ 'a' is in 'abc' }}", {}),
    ("{{ x }}", dict(x={"a": None, "b": [True, False, 1.0, "it's", 'say "hi"', "both ' and \"", "\n\t\\", "é\u200b\x00"], "c": {}})),
    ("{{ [1, 'a', none, true, 2.0, 1e100, {'k': 'v'}] }} {{ (1,) }} {{ (1, 'b') }} {{ () }} {{ none }} {{ true }} {{ 1.0 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }}", {}),
    ("{{ 'x: ' ~ x ~ ' ' ~ [1, 'a'] ~ none ~ 1e20 ~ true ~ nope }}", dict(x={"a": "b"})),
    ("{{ x | string }}|{{ x | join(', ') }}|{{ [none, 1.0, ['a']] | join('-') }}|{{ [{'n': 1}, {'n': 'b'}] | join('/', attribute='n') }}", dict(x={"a": "b", "c": 1})),
    ("{{ 'a-b-c'.rsplit('-', 1) }} {{ ' a  b c '.rsplit(none, 1) }} {{ ' a  b c '.split(none, 1) }} {{ 'a,b,c'.split(',', 1) }} {{ ' a b '.split() }} {{ ''.split() }} {{ ''.split(',') }}", {}),
    ("{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }}", {}),
    ("{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'x'.removeprefix('y') }}", {}),
    ("{{ '%s is %d, %.2f, %5s|%-5s|%05d %x %%' % ('a', 3, 2.5, 'b', 'c', 42, 255) }} {{ 'one %s' % 'x' }} {{ '%s' % [1, 'a'] }} {{ '%s %s' % (none, true) }} {{ '%(n)s' % {'n': 'named'} }}", {}),
    ("{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 * 7 % 4 + 1 }} {{ 7.5 % 2 }} {{ loop_index % 2 == 0 and true }}", dict(loop_index=4)),
    ("{{ 'The quick brown fox jumps' | truncate(12) }}|{{ 'The quick brown fox' | truncate(12, true) }}|{{ 'short enough' | truncate(9) }}|{{ 'The quick brown fox' | truncate(length=9, end='!', leeway=0) }}|{{ 'abcdefghijkl' | truncate(5, false, '', 0) }}", {}),
    ("{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(width=2, blank=true) }}|{{ 'a\nb' | indent('> ', first=true) }}", {}),
    ("{{ nope | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | default(1, boolean=true) }} {{ false | d('x') }} {{ nope | default }}|", {}),
    ("{{ 'aaa' | replace('a', 'b', 2) }} {{ 'aaa'.replace('a', 'b', 1) }} {{ 'abab'.count('ab') }} {{ [1, 1, 2].count(1) }}", {}),
    ("{{ \"they're bill's\".title() }} {{ 'hELLO wORLD'.swapcase() }} {{ 'hello world'.capitalize() }} {{ 'ß'.upper() }} {{ 'Straße'.casefold() }}", {}),
    ("{{ 'a'.ljust(3, '.') }} {{ 'a'.rjust(3, '.') }} {{ 'ab'.center(5, '.') }} {{ 'a'.center(4, '.') }} {{ '-42'.zfill(5) }} {{ 'é'.zfill(3) }}", {}),
    ("{{ 'a\nb\r\nc\x0bd\n'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c', 1) }} {{ 'abc'.startswith('b', 1) }}", {}),
    ("{{ ' '.isspace() }} {{ ''.isspace() }} {{ ''.isdigit() }} {{ '12'.isdigit() }} {{ 'ab1'.isalnum() }} {{ 'Ab'.islower() }} {{ 'ab!'.islower() }} {{ '!'.isupper() }} {{ 'AB'.isupper() }} {{ ''.isalpha() }}", {}),
    ("{{ x.items() | list }} {{ x.keys() | list }} {{ x.values() | list }} {{ x.get('a') }} {{ x.get('z') }} {{ x.get('z', 3) }} {% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %} {{ x | items | list }} {{ x | dictsort }} {{ x | dictsort(reverse=true) }} {{ {'B': 1, 'a': 2} | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(false, 'value') }}", dict(x={"b": 1, "a": [2]})),
    ("{{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ 'abc'[-1] }} {{ x[::-1] }} {{ x[1:3] }} {{ x[:-1] }} {{ x[::2] }} {{ x[3:0:-1] }} {{ []  [::-1] }} {{ ''[::-1] }} {{ x[-2:][0] }} {{ (1, 2, 3)[1:] }}", dict(x=[1, 2, 3, 4])),
    ("{{ '{} {:>4} {n}'.format('a', 1, n=none) }} {{ '{}'.format([1, 'a']) }} {{ ', '.join(['a', 'b']) }}", {}),
    ("{{ 'x'.join([1]) }}", {}),
    ("{{ '3' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 2.9 | int }} {{ 'ff' | int(0, 16) }} {{ '1.5' | float }} {{ 'x' | float(2.0) }} {{ true | int }}", {}),
    ("{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42 | round }} {{ 1.1 | round(method='ceil') }} {{ 1234.5 | round(-2) }}", {}),
    ("{{ x | length }} {{ nope | length }} {{ 'é' | count }} {{ 'a b' | wordcount }} {{ 'a' | center(5) }}| {{ [3, 1, 2] | sort }} {{ [1, 1, 2] | unique | list }} {{ 'abc' | reverse }} {{ [1, 2, 3] | reverse | list }}", dict(x={"a": 1})),
    ("{% for a in [1, 2, 3] if a != 2 %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ a }} {% else %}none{% endfor %}{% for a in [] %}{% else %}empty{% endfor %}", {}),
    ("{% macro f(a, b='x') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{{ f('a') ~ 'b' }}", {}),
    ("{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}", {}),
    ("{% set ns = namespace(a=1, b=[]) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b + [i] %}{% endfor %}{{ ns.a }} {{ ns.b }}", {}),
    ("{% set x %}a{{ 1 }}{% endset %}{{ x }} {% filter upper %}abc{% endfilter %} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% set (c, d) = (3, 4) %}{{ c }}{{ d }}", {}),
    ("{{ dict(a=1, b='c') }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ [0] * 2 }} {{ 2 ** 3 }} {{ 1 < 2 < 3 }} {{ 'a' in ['a'] }} {{ 'k' in x }} {{ 'b' not in 'abc' }}", dict(x={"k": 1})),
    ("{{ 'a' if false }}|{{ ('a' if true else 'b') ~ 'c' }}|{{ not true or 1 }}|{{ '' or 'x' }}|{{ x and 1 }}|{{ 1 and x }}", dict(x=0)),
    ("  {% if true %}\n  a\n  {% endif %}\n  {#- c -#}  b {%+ if true %}x{% endif %}\n{% raw %}{{ a ~ b }}{% endraw %}\n\n", {}),
    ("{% generation %}\n a {{ 1 }}\n{% endgeneration %}\nb {%- generation -%} c {%- endgeneration %}", {}),
    ("{{ \"\\u00e9\\t\\x41\\'\\\\d\" }}{{ 'a%}b' }}{{ '}}' }}", {}),
    ("{{ raise_exception('no') }}", {}),
    ("{{ nope.a.b }}", {}),
    ("{{ x.a.b }}|{{ x['z'] }}|{{ x.items() is defined }}", dict(x={"a": {"b": 3}})),
    ("{{ x | map(attribute='n') | list }} {{ x | selectattr('n', 'gt', 1) | map(attribute='n') | join }} {{ x | rejectattr('n', 'equalto', 1) | list }} {{ ['a', 'b'] | map('upper') | list }} {{ x | groupby('n') | length }} {{ x | sum(attribute='n') }} {{ [1, 2.5] | sum }} {{ [1] | sum(start=3) }}", dict(x=[{"n": 1}, {"n": 2}])),
    ("{{ messages | tojson }}", {}),
    ("{{ messages[0] }}", {}),
    ("{{ tools }}{{ documents }}", {}),
    ("{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ x }}", dict(x=False)),
]


def words_tokenizer():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<s>", "</s>", "<pad>"
    return tokenizer


def rendered(tokenizer, template, messages, tools, variables, opened):
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, chat_template=template, add_generation_prompt=opened,
                                             tokenize=False, **variables)
    except Exception as failed:  # a template may refuse in any way
        print("refused:", type(failed).__name__, str(failed)[:80])
        return None


def marks(template, messages, tools, variables):
    from transformers.utils.chat_template_utils import _normalize_chat_messages
    text, spans = render_jinja_template([_normalize_chat_messages(messages)], tools=tools, chat_template=template,
                                        return_assistant_tokens_mask=True, bos_token="<s>", eos_token="</s>", **variables)
    return spans[0]


def templates():
    tokenizer = words_tokenizer()
    cases = []
    for name, template in TEMPLATES.items():
        for conversation, messages in CONVERSATIONS.items():
            tools = TOOLS if conversation == "tools" else None
            for opened, variables in [(False, {}), (True, {}), (True, dict(enable_thinking=False))]:
                if variables and "enable_thinking" not in template:
                    continue
                text = rendered(tokenizer, template, messages, tools, variables, opened)
                case = dict(name=f"{name}, {conversation}", template=name, messages=messages, tools=tools,
                            variables=variables, opened=opened, text=text)
                if "generation %}" in template and not opened and text is not None:
                    case["marks"] = marks(template, messages, tools, variables)
                cases.append(case)
    spoken = [turn("user", "hi", x=1), turn("assistant", "yo", reasoning="why")]
    for i, (template, variables) in enumerate(CONSTRUCTS):
        text = rendered(tokenizer, template, spoken, None, variables, False)
        cases.append(dict(name=f"construct {i}: {template}", source=template, messages=spoken, tools=None,
                          variables=variables, opened=False, text=text))
    return dict(templates=TEMPLATES, cases=cases)


CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there!",
    "She said: it's 12 o'clock, isn't it? Yes, they're here; we've seen 345 of them.",
    "Grüße aus Zürich, naïve café, 日本語 テスト", "def f(x):\n    return x + 1\n\nprint(f(2))",
    "one two three four five six seven eight nine ten", "user assistant system tool weather",
] * 4
TEXTS = [
    "", "Hello world", " hello  there ", "The fox's 12345 dogs,\n\n  they're café\t!", "日本語 🦀 x",
    "<s>hi</s> there", "a<|im_start|>user\nhi<|im_end|>\n", "x <extra> y<extra>z", "▁under ▁score", "pad<pad>pad <image>!",
    "e\u0301 é", "don't stop . ok ?", "<|endoftext|>", "new<new_1> tok <new_2>en",
]


def special(*texts):
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return tokenizer


def sentencepiece_bpe():
    """As Llama 2's: spaces are ▁, what is unknown becomes bytes, and a text begins with <s>."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)],
                                  show_progress=False)
    tokenizer.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(content=" ", left=1)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram():
    """Pieces with made-up scores: training gives others each time."""
    letters = sorted(set("".join(line for line in CORPUS if line.isascii())) - set(" \n"))
    words = sorted({word for line in CORPUS if line.isascii() for word in line.split() if len(word) > 2})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(f"<0x{i:02X}>", -20.0) for i in range(256)]
    pieces += [("▁", -2.0)] + [(letter, -5.0 - i / 64) for i, letter in enumerate(letters)]
    pieces += [("▁" + word, -4.0 - i / 8) for i, word in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(special("<unk>", "<s>", "</s>"))
    return tokenizer


def word_piece():
    words = ["[UNK]", "hello", "world", "don", "'", "t", "stop", ".", "ok", "?", ",", "the", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def token(content, **fields):
    return dict(content=content, lstrip=False, rstrip=False, single_word=False, normalized=False) | fields


PLAIN = dict(tokenizer_class="PreTrainedTokenizerFast")
NAMES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
# name: (tokenizer.json, tokenizer_config.json, model_type, further files)
TOKENIZERS = {
    "plain": ("byte_level", PLAIN | dict(eos_token="<|im_end|>"), "llama", {}),
    "a pad token that is nowhere": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", pad_token="<pad>"), "llama", {}),
    "named tokens that are nowhere": ("byte_level", PLAIN | dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>"), "llama", {}),
    "bos and eos are asked for": (
        "byte_level", PLAIN | dict(bos_token="<|im_start|>", eos_token="<|im_end|>", add_bos_token=True, add_eos_token=True), "llama", {}),
    "added tokens": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", added_tokens_decoder={
        "360": token("<|endoftext|>", special=True), "361": token("<|im_start|>", special=True), "362": token("<|im_end|>", special=True),
        "364": token("<new_2>", special=False, lstrip=True, normalized=True), "363": token("<new_1>", special=True)}), "llama", {}),
    "a token that strips blanks": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", added_tokens_decoder={
        "361": token("<|im_start|>", special=True), "362": token("<|im_end|>", special=True, rstrip=True),
        "363": token("<extra>", special=True, lstrip=True, rstrip=True)}), "llama", {}),
    "additional tokens": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", additional_special_tokens=["<extra>", "<|im_start|>"]), "llama", {}),
    "extra tokens": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", extra_special_tokens=["<extra>"]), "llama", {}),
    "extra tokens by name": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", extra_special_tokens=dict(image_token="<image>")), "llama", {}),
    "a token of the model's own": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", image_token="<image>"), "llama", {}),
    "special tokens are split": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", split_special_tokens=True), "llama", {}),
    "special_tokens_map.json": ("byte_level", PLAIN | dict(eos_token="<|im_end|>"), "llama", {
        "special_tokens_map.json": dict(bos_token=token("<s>"), pad_token="<pad>", additional_special_tokens=["<extra>"])}),
    "added_tokens.json": ("byte_level", PLAIN | dict(eos_token="<|im_end|>", pad_token="<pad>"), "llama", {
        "added_tokens.json": {"<pad>": 364, "<extra>": 363}}),
    "Qwen2's class": ("byte_level", dict(tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None,
                                         unk_token=None, additional_special_tokens=["<|im_start|>", "<|im_end|>"]), "qwen3", {}),
    "Qwen2's class with listed tokens": (
        "byte_level", dict(tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", added_tokens_decoder={
            "360": token("<|endoftext|>", special=True), "361": token("<|im_start|>", special=True), "362": token("<|im_end|>", special=True),
            "363": token("<extra>", special=False)}), "qwen2", {}),
    "Qwen2 distrusts another class": ("byte_level", PLAIN | dict(eos_token="<|im_end|>"), "qwen2", {}),
    "Qwen3 trusts another class": ("byte_level", PLAIN | dict(eos_token="<|im_end|>"), "qwen3", {}),
    "Qwen3 without a class": ("byte_level", dict(eos_token="<|im_end|>"), "qwen3", {}),
    "GPT-2's class": ("byte_level", dict(tokenizer_class="GPT2Tokenizer", eos_token="<|im_end|>"), "llama", {}),
    "GPT-2's class with a blank before": ("byte_level", dict(tokenizer_class="GPT2TokenizerFast", add_prefix_space=True), "llama", {}),
    "Llama's class on bytes": ("byte_level", dict(tokenizer_class="LlamaTokenizerFast", bos_token="<s>", eos_token="<|im_end|>"), "llama", {}),
    "pieces as they are": ("sentencepiece", PLAIN | NAMES, "llama", {}),
    "Llama's class": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer") | NAMES, "llama", {}),
    "Llama's class, fast": ("sentencepiece", dict(tokenizer_class="LlamaTokenizerFast", add_bos_token=False, add_eos_token=True) | NAMES, "llama", {}),
    "Llama's class, legacy": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer", legacy=True) | NAMES, "llama", {}),
    "Llama's class without a blank": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer", add_prefix_space=False) | NAMES, "llama", {}),
    "Llama's class with listed tokens": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer", pad_token="<pad>", added_tokens_decoder={
        "0": token("<unk>", special=True), "1": token("<s>", special=True), "2": token("</s>", special=True),
        "400": token("<extra>", special=True, rstrip=True)}) | NAMES, "llama", {}),
    "Llama's class in Mistral": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer") | NAMES, "mistral", {}),
    "Llama's class in Phi-3": ("sentencepiece", dict(tokenizer_class="LlamaTokenizer") | NAMES, "phi3", {}),
    "Gemma's class": ("sentencepiece", dict(tokenizer_class="GemmaTokenizer") | NAMES, "gemma", {}),
    "Gemma without a class": ("sentencepiece", NAMES, "gemma", {}),
    "unigram": ("unigram", PLAIN | NAMES, "llama", {}),
    "unigram in Llama's class": ("unigram", dict(tokenizer_class="LlamaTokenizer") | NAMES, "llama", {}),
    "blanks are cleaned up": ("word_piece", PLAIN | dict(clean_up_tokenization_spaces=True), "llama", {}),
    "blanks stay": ("word_piece", PLAIN, "llama", {}),
}


def tokenizer_cases(output):
    files = dict(byte_level=byte_level(), sentencepiece=sentencepiece_bpe(), unigram=unigram(), word_piece=word_piece())
    (output / "tokenizers").mkdir(parents=True, exist_ok=True)
    for name, tokenizer in files.items():
        (output / "tokenizers" / f"{name}.json").write_text(tokenizer.to_str() + "\n")
    cases = []
    for name, (file, config, model_type, further) in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as directory:
            directory = Path(directory)
            beside = {"tokenizer_config.json": config, "config.json": dict(model_type=model_type)} | further
            (directory / "tokenizer.json").write_text(files[file].to_str())
            for path, content in beside.items():
                (directory / path).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(directory)
            texts = []
            for text in TEXTS:
                ids = tokenizer.encode(text)
                without = tokenizer.encode(text, add_special_tokens=False)
                texts.append([text, ids, without, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)])
            cases.append(dict(name=name, file=file, beside=beside, texts=texts, length=len(tokenizer), bos=tokenizer.bos_token_id,
                              eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id))
            print(name, "->", type(tokenizer).__name__, len(tokenizer))
    return cases


def turns():
    """Of every turn of the assistant: the prompt with the reply opened, and what follows it when the turn is there."""
    words, byte = words_tokenizer(), byte_level()
    cases = []
    for name, template in TEMPLATES.items():
        for conversation in ["reply", "many", "system", "reasoning", "tools"]:
            messages = CONVERSATIONS[conversation]
            tools = TOOLS if conversation == "tools" else None
            expected = []
            for i, message in enumerate(messages):
                if message["role"] != "assistant":
                    continue
                prompt = rendered(words, template, messages[:i], tools, {}, True)
                whole = rendered(words, template, messages[:i + 1], tools, {}, False)
                if prompt is None or whole is None:
                    expected = None
                    break
                marked = marks(template, messages[:i + 1], tools, {}) if "generation %}" in template else None
                expected.append(dict(prompt=prompt, whole=whole, marks=marked))
            if expected:
                cases.append(dict(template=name, messages=messages, tools=tools, turns=expected))
    return cases


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    write(output / "tokenizers.json", tokenizer_cases(output))
    write(output / "templates.json", templates())
    write(output / "turns.json", turns())
    versions = dict(transformers=transformers.__version__, tokenizers=tokenizers.__version__, jinja2=jinja2.__version__)
    write(output / "versions.json", versions)


if __name__ == "__main__":
    main()
