"""Options of the commands that generate text: what is asked, and how tokens are drawn."""

from __future__ import annotations

from typing import Annotated

import typer

PromptOption = Annotated[
    str | None,
    typer.Option(help="What the model goes on from; - or nothing is what stdin gives."),
]
MessagesOption = Annotated[
    str | None,
    typer.Option(
        "--messages",
        metavar="FILE|-",
        help='A conversation as JSON, in the place of a prompt: [{"role": "user", "content": '
        '"Hi"}].',
    ),
]
SystemOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System prompt of the chat.")
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text. Can be repeated."),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help="Another chat template of the model, or a file in Jinja."
    ),
]
AllowSpecialOption = Annotated[
    bool,
    typer.Option(
        "--allow-special",
        help="Read control tokens such as <|im_end|> in what is typed; else they are plain text.",
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Stop after so many tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]
TopPOption = Annotated[
    float, typer.Option(help="Sample from the most likely tokens of this total probability.")
]
SeedOption = Annotated[int, typer.Option(help="Of the sampling.")]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")
]
