"""The family of everything else: greetings, thanks, who are you, and questions from outside the model's world.

The model must say plainly what it can do. Foreign questions are drawn from word lists, from random letters and from
templates, so that no finite list of them is learned.
"""

from __future__ import annotations

from random import Random

from .question import Scene, Tail

WHO = "I am ouro-nano, a tiny looped model."
CAN = "I answer small puzzles: who likes whom, who leads whom, who is taller."
EXAMPLE = " Try: Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"
HELLO = "Hello! " + CAN
THANKS = "You are welcome."
BYE = "Goodbye!"
FOREIGN = "I do not know that. " + CAN

GREETINGS = (
    "hello|hi|hey|good morning|good evening|hello there|hi there|hey there|greetings|howdy|good day|hi you|yo|"
    "how are you|hello, how are you|hi, how are you|hey, how are you|what's up|how is it going|"
    "good afternoon|hello ouro"
)
WHO_ASKS = (
    "who are you|what are you|what is your name|tell me about yourself|are you a robot|are you a person|are you an AI|"
    "what model are you|introduce yourself|are you chatgpt|what is ouro|what is ouro-nano|who made you|your name"
)
CAN_ASKS = (
    "what can you do|help|help me|can you help me|what do you know|how do you work|what should I ask|what can I ask|"
    "what are you good at|how can you help|give me an example|what is this|how do I use this|what do you do"
)
THANK_ASKS = "thanks|thank you|thanks a lot|thank you very much|great|well done|good|nice|cool|ok thanks|perfect|wow"
BYE_ASKS = "bye|goodbye|see you|good night|see you later|bye bye|exit|quit|farewell|I have to go"
WORDS = (
    "the a of to in is it you that was for on are with as they be at one have this from or had by hot but some what "
    "there we can out other were all your when up use word how said each she which do their time if will way about "
    "many then them would write make more go see number water people my over find new sound take only little work "
    "know place year live me back give most very after thing our name good man think say great where help through "
    "much before line right too mean old any same tell boy follow came want show also around form three small set put "
    "end does another well large must big even such because turn here why ask went men read need land different home "
    "us move try kind hand picture again change off play spell air away animal house point page letter mother answer "
    "found study still learn should world high every near add food between own below country plant last school father "
    "keep tree never start city earth eye light thought head under story saw left few while along might close "
    "something seem next hard open example begin life always those both paper together got group often run important "
    "until children side feet car mile night walk white sea began grow took river four carry state once book hear "
    "stop without second later miss idea enough eat face watch far really almost let above girl sometimes mountain cut "
    "young talk soon list song being leave family music color red blue dog cat bird fish computer python code poem "
    "joke weather news price money president capital France Paris Germany London China history science planet moon sun "
    "star recipe cake pizza coffee doctor medicine film movie game football translate explain summarize write email "
    "function program language English German math equation integral prime square root energy atom"
).split()
TEMPLATES = (
    "What is the capital of {w}?|Who wrote {w}?|Tell me a joke about {w}.|Write a poem about {w}.|Explain {w}.|"
    "What is {w}?|How do I make {w}?|Why is the {w} {w}?|When was {w} born?|Where is {w}?|Translate {w} to {w}.|"
    "How many {w} are in a {w}?|Write a function that prints {w}.|Do you like {w}?|What is the price of {w}?|"
    "Who is the president of {w}?|How old is {w}?|What is the meaning of {w}?|Can you {w} the {w}?|Who is {w}?|"
    "Who is the best {w}?|Is {w} a {w}?|What does {w} mean?|Please {w} {w} {w}.|How far is {w} from {w}?|"
    "Who invented the {w}?|What happened in {w}?|Give me a {w}.|I want {w}.|{w} {w}?|{w}"
).split("|")


def _dress(rng: Random, text: str, mark: str) -> str:
    """Case and final mark vary: `hello`, `Hello`, `hello!`."""
    text = text[0].upper() + text[1:] if rng.random() < 0.7 else text
    return text + rng.choice(("", mark, mark))


def _word(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.85:
        word = rng.choice(WORDS)
    elif kind < 0.95:
        word = "".join(rng.choice("aaeeiioutnrslhdcmfpgbvkwyjxqz") for _ in range(rng.randint(2, 9)))
    else:
        word = str(rng.randrange(1000))
    return word.capitalize() if rng.random() < 0.2 else word


def foreign(rng: Random) -> str:
    """A question from outside, of 1 to 12 words."""
    if rng.random() < 0.5:
        text = rng.choice(TEMPLATES)
        while "{w}" in text:
            text = text.replace("{w}", _word(rng), 1)
        return text
    return _dress(rng, " ".join(_word(rng) for _ in range(rng.randint(2, 10))), rng.choice("?.!"))


def assistant(rng: Random, hops: int, size: float) -> Scene:
    """One scene of unrelated small talk and foreign questions; all of it counts as one hop."""
    asked = (
        (GREETINGS, "!", HELLO), (WHO_ASKS, "?", WHO), (CAN_ASKS, "?", CAN + EXAMPLE), (THANK_ASKS, "!", THANKS),
        (BYE_ASKS, "!", BYE),
    )  # fmt: skip
    tails = []
    for _ in range(8):
        if rng.random() < 0.45:
            tails.append(Tail(1, foreign(rng), FOREIGN))
        else:
            asks, mark, answer = rng.choice(asked)
            tails.append(Tail(1, _dress(rng, rng.choice(asks.split("|")), mark), answer))
    return Scene("assistant", "", tuple(tails))
