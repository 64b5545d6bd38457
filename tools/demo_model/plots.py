"""The story plots of the demo world, as data: beats in a small template language that text.py
expands.

`[x|y|]` picks one alternative (nesting is allowed, an empty one drops the words). `{a}` and `{b}`
are two children, `{g}` a grown-up, `{t}` and `{t2}` two different things, `{p}`, `{p2}` and `{p3}`
three different places, `{spot1}`, `{spot2}` and `{spot}` a spot in each of them, `{pet}` the pet of
`{a}`. A capital (`{Noise}`) capitalizes. A row of `picks` sets several slots at once, so that a
cause and its effect stay together. Questions are about what the beats have said, whichever
alternatives were taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Row = Mapping[str, str]


@dataclass(frozen=True)
class Plot:
    """One plot: what it is about, its beats in order, tables of choices, and questions with their
    answers."""

    about: str
    beats: tuple[str, ...]
    picks: tuple[tuple[Row, ...], ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    outdoor: bool = False  # takes place where it rains, plants grow and animals live


LOST = Plot(
    about="{t.a}",
    picks=(
        (
            {"cause": "The wind had carried it there.", "how": "Because of the wind."},
            {"cause": "{pet} had carried it there.", "how": "{pet} had carried it there."},
            {"cause": "{a} had left it there the day before.", "how": "{a} had left it there."},
            {"cause": "A magpie had dropped it there.", "how": "A magpie had dropped it."},
        ),
    ),
    beats=(
        "{a} had {t.a} and loved to {use}. [One morning|One day|After school], {t.the} was gone.",
        "[{a} was sad.|{a.He} felt sad.|{a} was worried.] [{a.He} wanted to {use}, but {a.he} "
        "could not find it.|]",
        "First {a.he} looked {p.at}. [{a.He} found only [an old shoe|some dry leaves|a sleeping "
        "dog].|It was not "
        "there.]",
        "Then {a.he} looked {p2.at}[, but it was not there either|, but there was nothing]. "
        "[{a} sat down and [thought|sighed].|]",
        '[Then {b} came by.|Just then {b} walked past.] "[What is wrong|Why are you so sad]?" '
        "asked {b}. "
        '"I lost my {t}," said {a}.',
        '"[I can help you|Do not worry|Let us look together]," said {b}. "[Have you looked|Did '
        'you look] {p3.at}?"',
        "[So they went to {p3}.|{a} and {b} ran to {p3}.|Together they walked to {p3}.] "
        "[They looked and looked.|They looked [left and right|up and down].|]",
        "There was {t.the}, {spot}! {cause}",
        '"[Thank you|Thank you so much], {b}!" said {a}. [{a.He} was very happy.|{a.He} hugged '
        "{b}.|{a.He} laughed.]",
        "[From that day on, {a} took good care of {t.the}.|Then they took turns to {use}.|That "
        "night, {a} put {t.the} "
        "next to {a.his} bed.]",
    ),
    questions=(
        ("What did {a} lose?", "{a} lost {t.the}."),
        ("Where was {t.the}?", "{t.The} was {p3.at}, {spot}."),
        ("Who helped {a}?", "{b} helped {a}."),
        ("How did {t.the} get there?", "{how}"),
    ),
)

GIFT = Plot(
    about="a birthday",
    picks=(
        (
            {
                "maker": "bought it at the market",
                "price": "[{a.He} paid three coins for it.|It was not expensive.]",
            },
            {
                "maker": "made it {a.himself}",
                "price": "[It took two days.|It was hard work, but {a.he} did not give up.]",
            },
            {
                "maker": "got it from {g}",
                "price": '["Take good care of it," said {g}.|{g} smiled and gave it to {a.him}.]',
            },
        ),
    ),
    beats=(
        "[Tomorrow was the birthday of {b}.|It was almost the birthday of {b}.] {a} wanted to "
        "give {b.him} "
        "something nice.",
        '"What does {b} [like|need]?" {a} asked {a.himself}. [{a.He} thought for a long '
        "time.|{a.He} looked at "
        "{t2.the} "
        "in {a.his} room, but it was too old.]",
        "[Then {a.he} had an idea.|At last {a} knew it.] {b} had always wanted {t.a}.",
        "So {a} {maker}. {price}",
        "{a} put {t.the} in a [big|small|pretty] box and hid it {p.at}, {spot1}.",
        "[The next day|On the birthday|In the morning], {a} gave the box to {b}. "
        '"[Happy birthday|This is for you], {b}!" {a.he} said.',
        '{b} opened the box. "{t.A}!" {b.he} [cried|said]. "[It is just what I wanted|I love '
        'it|I can {use}]!"',
        "[{b} was so happy that {b.he} danced.|{b} hugged {a}.|{b} laughed and thanked {a}.] "
        "[Then they ate cake together.|Then they ate {b.food}, because {b} likes {b.food}.|]",
    ),
    questions=(
        ("What did {b} get?", "{b} got {t.a} from {a}."),
        ("Whose birthday was it?", "It was the birthday of {b}."),
        ("Where did {a} hide the box?", "{a} hid it {p.at}, {spot1}."),
    ),
)

RAIN = Plot(
    about="the rain",
    outdoor=True,
    picks=(
        (
            {
                "end": "a rainbow stood over the hill",
                "they_do": "They looked at it for a long time.",
            },
            {"end": "there were puddles everywhere", "they_do": "They jumped into every puddle."},
            {
                "end": "the air was fresh and a snail sat on the path",
                "they_do": "They watched it for a long time.",
            },
        ),
        (
            {"shelter": "under a big tree", "wet": "Only a few drops fell on them there."},
            {"shelter": "into an empty shed", "wet": "It was dry and warm inside."},
            {"shelter": "into the house of {g}", "wet": "{g} gave them hot milk."},
        ),
    ),
    beats=(
        "[One day|One afternoon|In spring], {a} and {b} [were playing|played] {p.at} with {t.a}.",
        "[The sky was blue at first.|The sun was shining.] Then dark clouds came, and [it began "
        "to rain|rain "
        "began to fall].",
        '"[Oh no|Quick], we will get wet!" [said|cried] {b}. "[Where can we go|What can we do]?"',
        '"[Come with me|Follow me|Run]!" said {a}. [{a.He} took {t.the} and they ran|They ran] '
        "{shelter}. {wet}",
        "[They waited and listened to the rain.|While they waited, {a} told a story about "
        "{pet}.|They counted "
        "the drops.] "
        "[There was thunder, and {b} was a little afraid. {a} held {b.his} hand.|]",
        "[After a while|Soon|At last] the rain stopped. When they came out, {end}. {they_do}",
        "[{a} and {b} were wet but happy.|Then they went home and got dry.] "
        '["Rain is not so bad," said {b}.|"The flowers needed the rain," said {a}.|]',
    ),
    questions=(
        ("Where did they run?", "They ran {shelter}."),
        ("Who was with {a}?", "{b} was with {a}."),
        ("What did they play with?", "They played with {t.a}."),
    ),
)

RESCUE = Plot(
    about="a little {animal}",
    outdoor=True,
    picks=(
        (
            {
                "animal": "kitten",
                "sound": "meow",
                "stuck": "high in a tree",
                "tool": "ladder",
                "eat": "milk",
            },
            {
                "animal": "lamb",
                "sound": "baa",
                "stuck": "in the mud",
                "tool": "rope",
                "eat": "grass",
            },
            {
                "animal": "duckling",
                "sound": "peep",
                "stuck": "in a deep hole",
                "tool": "bucket",
                "eat": "bread crumbs",
            },
            {
                "animal": "fox cub",
                "sound": "yip",
                "stuck": "under a fallen branch",
                "tool": "saw",
                "eat": "berries",
            },
        ),
    ),
    beats=(
        "[One morning|One day|On the way home], {a} was {p.at}. [Suddenly {a.he} heard a "
        "sound.|{a.He} heard "
        "something.] "
        '"{Sound}, {sound}!"',
        "It was a little {animal}. It was stuck {stuck}[ and could not get out|]. [It was very "
        "afraid.|It was "
        "cold and hungry.]",
        '"[Do not be afraid|Poor little {animal}|I will help you]," said {a}. But {a.he} could '
        "not [reach|free] "
        "it alone.",
        "So {a.he} ran to {g} [and asked for help|for help]. {g} had a {tool}[ and came at once|].",
        "[With the {tool}, they freed the {animal}.|They used the {tool}, and soon the {animal} "
        "was free.|{a} "
        "and {g} worked "
        "hard with the {tool}. At last the {animal} was free.]",
        "{a} gave it some {eat}. The {animal} ate [it all|everything|and ate]. [Then it was not "
        "afraid any more.|]",
        "[Its mother was waiting nearby. The {animal} ran to her.|The {animal} followed {a} all "
        "the way "
        "home.|The {animal} "
        "looked back once and ran away.] [{a} was happy.|{a} waved.|{pet} became its friend.]",
    ),
    questions=(
        ("What animal did {a} find?", "{a} found a little {animal}."),
        ("Where was the {animal}?", "The {animal} was stuck {stuck}."),
        ("Who helped {a}?", "{g} helped {a} with a {tool}."),
        ("What did the {animal} eat?", "It ate {eat}."),
    ),
)

BAKE = Plot(
    about="{dish}",
    picks=(
        (
            {"dish": "an apple cake", "need": "apples", "source": "orchard", "short": "cake"},
            {"dish": "bread", "need": "flour", "source": "mill", "short": "bread"},
            {"dish": "fish soup", "need": "a big fish", "source": "harbor", "short": "soup"},
            {"dish": "a berry pie", "need": "berries", "source": "forest", "short": "pie"},
            {"dish": "pancakes", "need": "eggs", "source": "barn", "short": "food"},
        ),
        (
            {
                "trouble": "{a} put in too much salt",
                "fix": "So they made it again, and {b} read every step aloud.",
            },
            {
                "trouble": "the fire went out",
                "fix": "So {b} brought dry wood, and {a} lit the fire again.",
            },
            {
                "trouble": "{pet} took the spoon",
                "fix": "They laughed and ran after {pet} until they had it back.",
            },
        ),
    ),
    beats=(
        "[One day|One evening|On Sunday], {a} and {b} wanted to make {dish}. [They were very "
        "hungry.|It was for {g}.|]",
        '"We need {need}," said {b}. [{a} looked in the kitchen, but there was nothing left.|But '
        "they had none.]",
        '"[I know where to go|I will get some]," said {a}. {a.He} took a basket and went to the '
        "{source}.",
        "[Soon {a.he} came back with {need}.|{a} found {need} there and ran home.] Then they "
        "began to [work|cook].",
        "But {trouble}! {fix}",
        "[At last|After an hour], the {short} was ready. [It smelled wonderful.|It was hot and "
        "good.|It looked a "
        "little funny.]",
        '[They gave some to {g}.|They ate it all.] "[This is the best {short} in Fernby|It '
        'tastes so good]!" said {b}.',
    ),
    questions=(
        ("What did {a} and {b} make?", "They made {dish}."),
        ("Where did {a} go?", "{a} went to the {source} to get {need}."),
        ("What did they need?", "They needed {need}."),
    ),
)

SWAP = Plot(
    about="the market",
    beats=(
        "{a} had {t.a}, but {a.he} did not [use|need] it any more. {a.He} [wanted|wished for] "
        "{t2.a}.",
        "So {a.he} [took {t.the} and went|went with {t.the}] to the market. [Many people were "
        "there.|It was full "
        "and loud.]",
        "{a} met {b}. {b} had {t2.a}! [It was old, but still good.|It looked almost new.|]",
        '"[Would you like to swap|Shall we swap]?" asked {a}. "My {t} for your {t2}."',
        '{b} [thought about it|looked at {t.the}|was not sure]. "[Does it still work|Is it '
        'good]?" {b.he} asked. '
        '"[Yes, try it|Yes, of course]," said {a}.',
        '"[All right|Good], let us swap!" said {b}. So {a} got {t2.the} and {b} got {t.the}.',
        "[Both were happy.|Now everybody was happy.] {a} could {use2}, and {b} could {use}.",
        "[A fair swap makes two people happy.|They walked home together.|The next day they "
        "played together {p.at}.]",
    ),
    questions=(
        ("What did {a} get?", "{a} got {t2.the}."),
        ("What did {b} get?", "{b} got {t.the}."),
        ("Where did they meet?", "They met at the market."),
    ),
)

BUILD = Plot(
    about="a {made}",
    picks=(
        (
            {
                "made": "boat",
                "wrong": "it sank",
                "why": "there was a hole in it",
                "mend": "closed the hole",
                "ok": "it floated",
            },
            {
                "made": "kite",
                "wrong": "it fell down",
                "why": "it had no tail",
                "mend": "gave it a long tail",
                "ok": "it flew",
            },
            {
                "made": "sled",
                "wrong": "it broke",
                "why": "the wood was too thin",
                "mend": "used thick wood",
                "ok": "it was fast",
            },
            {
                "made": "swing",
                "wrong": "it fell",
                "why": "the rope was too old",
                "mend": "took a new rope",
                "ok": "it was strong",
            },
            {
                "made": "cart",
                "wrong": "it stopped",
                "why": "a wheel was loose",
                "mend": "fixed the wheel",
                "ok": "it rolled",
            },
        ),
        ({"color": "red"}, {"color": "blue"}, {"color": "green"}, {"color": "yellow"}),
    ),
    beats=(
        "{a} wanted to build a {made}. [{a.He} got wood and paper.|{a.He} worked all "
        "morning.|{a.His} friend {b} "
        "helped.]",
        "[When it was done|When the {made} was ready], {a} painted it {color} and took it to {p}.",
        "[But {wrong}!|{a} tried it, but {wrong}.] [{a} was sad.|{a} nearly cried.|{a} did not "
        "understand.]",
        '{g} saw it. "[Let me look|Show me the {made}]," {g.he} said. "[I see|Look]. It did not '
        'work because {why}."',
        '"[Can we mend it|What can I do]?" asked {a}. "[Of course|Try again]," said {g}. "[I '
        "will help|Do not "
        'give up]."',
        "So {a} {mend}[ and painted the {made} again|]. [It took all day.|{g} held it for "
        "{a.him}.|]",
        "[The next day|Then] {a} tried the {color} {made} again, and {ok}! [{a} jumped with "
        "joy.|{a} shouted and "
        "laughed.]",
        "[If something does not work, you can try again.|{a} thanked {g}.|{b} wanted a {made} "
        "too, so they built "
        "another one.]",
    ),
    questions=(
        ("What did {a} build?", "{a} built a {made}."),
        ("Why did the {made} not work?", "It did not work because {why}."),
        ("What color was the {made}?", "The {made} was {color}."),
        ("Who helped {a}?", "{g} helped {a}."),
    ),
)

HIDE = Plot(
    about="hide and seek",
    picks=(
        (
            {"sign": "{pet} ran to a dark corner", "sign2": "{pet} had found {b.him}."},
            {"sign": "there was a sneeze", "sign2": "{b} had dust in {b.his} nose."},
            {"sign": "somebody laughed", "sign2": "{b} could not keep quiet."},
            {"sign": "{a} saw a foot", "sign2": "{b} had forgotten to hide it."},
        ),
    ),
    beats=(
        "[One day|After school|On a warm day], {a} and {b} played hide and seek {p.at}.",
        "{a} closed {a.his} eyes and counted to ten. [{b} ran away quickly.|{b} hid as fast as "
        "{b.he} could.]",
        '"[Ready or not, here I come|Now I am coming]!" [called|cried] {a}. {a.He} looked {spot1}. '
        "[{b} was not there.|There was only [a hen|a cat|a frog].]",
        "{a} looked {p2.at}, {spot2}. [No {b}.|{b} was not there either.]",
        '[It was getting late.|{a} was tired.|] "[Where can {b.he} be|{b} is good at hiding]," '
        "{a.he} [thought|said].",
        "At last {a} came to {p3}, and {sign}. {a} looked {spot}.",
        '"I found you!" said {a}. {sign2} [They both laughed.|{b} laughed.]',
        '"[Now it is my turn|Now you hide]," said {b}. [So they played until it was dark.|They '
        "played all day.]",
    ),
    questions=(
        ("Where did {b} hide?", "{b} hid {p3.at}, {spot}."),
        ("What did {a} and {b} play?", "They played hide and seek."),
        ("Who was hiding?", "{b} was hiding."),
    ),
)

NIGHT = Plot(
    about="a strange sound",
    picks=(
        (
            {
                "noise": "tap, tap, tap",
                "truth": "a branch that hit the window in the wind",
                "act": "tied the branch back",
            },
            {
                "noise": "hoo, hoo",
                "truth": "the old owl on the roof",
                "act": "said good night to the owl",
            },
            {
                "noise": "drip, drip, drip",
                "truth": "water that fell into a cup",
                "act": "closed the hole in the roof",
            },
            {
                "noise": "scratch, scratch",
                "truth": "a small mouse with a nut",
                "act": "gave the mouse a bit of cheese",
            },
        ),
    ),
    beats=(
        "It was night, and {a} was in bed. [The moon was shining.|It was very dark.|The wind "
        "blew.]",
        'Then {a.he} heard a strange sound: "{noise}." [{a} was afraid.|{a} pulled the blanket '
        "over {a.his} head.]",
        '"[What is that|Who is there]?" {a.he} [whispered|asked]. [Nobody answered.|There was no '
        "answer.] "
        '"{Noise}," it went again.',
        "{a} [took|lit] a lantern[ and put on a scarf|]. [{pet} came too.|{pet} was awake and "
        "came with {a.him}.]",
        "[Step by step|Slowly], {a} [went|walked] to the sound. {a.His} heart beat fast. [But "
        "{a.he} was brave.|]",
        "[{a} held up the lantern.|Then {a.he} saw it.] It was only {truth}!",
        "{a} laughed and {act}. [Now {a.he} was not afraid any more.|]",
        "[Then {a.he} went back to bed and slept well.|The next day, {a.he} told {b} about it. "
        "{b} laughed too.]",
    ),
    questions=(
        ("What made the sound?", "It was {truth}."),
        ("Who went with {a}?", "{pet} went with {a}."),
        ("What did {a} take?", "{a} took a lantern."),
    ),
)

SHARE = Plot(
    about="{t.a}",
    outdoor=True,
    picks=(
        (
            {
                "way": "{a} had it in the morning and {b} had it in the afternoon",
                "rule": "We can take turns",
            },
            {"way": "they used it together", "rule": "We can use it together"},
            {
                "way": "{a} had it first, and then {b}, and then {a} again",
                "rule": "We can take turns",
            },
        ),
    ),
    beats=(
        "[One day|One morning], {a} and {b} found {t.a} {p.at}, {spot1}.",
        '"It is mine! I saw it first," said {a}. "No, it is mine!" said {b}. [Both wanted to '
        "{use}.|They both "
        "pulled at it.]",
        "[They were angry and did not talk.|{a} shouted and {b} cried.|They stood there and "
        "nobody smiled.]",
        '{g} came by and asked, "[What is the matter|Why are you angry]?" [They told {g} '
        "everything.|They told "
        "{g} about {t.the}.]",
        '"[Think about it|You are friends]," said {g}. "[How can you both be happy|What would be '
        'fair]?"',
        '{a} looked at {b}. "{rule}," {a.he} said. "[Yes, that is fair|That is a good idea]," '
        "said {b}.",
        "So {way}. [Soon they were laughing again.|They were friends again.|It was more fun than "
        "before.]",
        "[{g} smiled.|Sharing is better than fighting.|In the evening, they walked home together.]",
    ),
    questions=(
        ("What did {a} and {b} find?", "They found {t.a}."),
        ("Where did they find it?", "They found it {p.at}, {spot1}."),
        ("Who helped them?", "{g} helped them."),
    ),
)

SEED = Plot(
    about="a seed",
    outdoor=True,
    picks=(
        (
            {
                "plant": "sunflower",
                "grown": "as tall as a house",
                "use_of": "The birds ate its seeds.",
            },
            {"plant": "pumpkin", "grown": "as big as a wheel", "use_of": "They made soup from it."},
            {
                "plant": "apple tree",
                "grown": "full of white flowers",
                "use_of": "One day there will be apples on it.",
            },
            {
                "plant": "bean",
                "grown": "longer than a rope",
                "use_of": "They ate the beans with butter.",
            },
        ),
    ),
    beats=(
        'In spring, {g} gave {a} a small seed. ["What is it?" asked {a}. "Wait and see," said '
        "{g}.|{a} did not "
        "know what it was.]",
        "{a} put it in the ground {p.at} and gave it water. [Every day {a.he} looked at "
        "it.|{a.He} came every "
        "morning.]",
        "For [many days|a week|two weeks], nothing happened. [{a} was sad.|{a} was worried.] "
        '"[It needs time|You must wait]," said {b}.',
        "[Then it did not rain, and the earth got dry.|Then the days got hot.] {a} carried water "
        "[from the "
        "river|from the well] "
        "in a bucket, and {b} helped.",
        "[One morning|At last], there was a little green leaf! [{a} called {b}.|{a} danced "
        "around it.]",
        "It grew and grew. In summer it was {grown}. It was a {plant}!",
        "{use_of} [{a} kept a seed for the next year.|{a} gave a seed to {b}.|{a} was proud.]",
    ),
    questions=(
        ("What grew from the seed?", "It was a {plant}."),
        ("Who gave {a} the seed?", "{g} gave {a} the seed."),
        ("Where did {a} put the seed?", "{a} put it in the ground {p.at}."),
    ),
)

PICNIC = Plot(
    about="a picnic",
    outdoor=True,
    picks=(
        (
            {"missing": "the bread", "instead": "apples from a tree"},
            {"missing": "the pie", "instead": "ripe plums"},
            {"missing": "the cake", "instead": "sweet berries"},
            {"missing": "the cheese", "instead": "nuts and honey"},
        ),
    ),
    beats=(
        "[It was a sunny day.|It was a warm summer day.] {a} and {b} wanted to have a picnic "
        "{p.at}.",
        "They took a basket and {t.a}. [{pet} ran ahead of them.|{pet} came too.|On the way they "
        "sang.]",
        "[When they got there|When they came to {p}], they sat down [in the grass|in the shade]. "
        "{b} opened the "
        "basket.",
        '"Oh no!" said {b}. "We forgot {missing}!" [{a} was hungry.|They looked at each other.]',
        '"[It does not matter|Do not worry]," said {a}. "[We can find something else|Let us look '
        'around]."',
        "So they looked around and found {instead}. [It was even better.|It tasted very "
        "good.|They ate until "
        "they were full.]",
        "[Then they played with {t.the}.|After that, they played with {t.the} until evening.]",
        '[When the sun went down, they went home.|In the evening they walked home.] "[That was a '
        "good day|Next "
        "time we will "
        'not forget {missing}]," said {a}.',
    ),
    questions=(
        ("What did they forget?", "They forgot {missing}."),
        ("What did they eat?", "They ate {instead}."),
        ("Where was the picnic?", "The picnic was {p.at}."),
    ),
)

BROKEN = Plot(
    about="the truth",
    picks=(
        (
            {"slip": "{a} ran too fast and fell on it"},
            {"slip": "it slipped out of {a.his} hands"},
            {"slip": "{pet} jumped on it"},
        ),
    ),
    beats=(
        "{b} had {t.a}. One day, {a} wanted to {use}[, and {b} said yes|, so {b} lent it to "
        "{a.him}].",
        "{a} took it to {p}. But {slip}, and {t.the} broke. [{a} felt terrible.|{a} did not know "
        "what to do.]",
        '[First {a.he} wanted to hide it {spot1}.|"Maybe {b} will not see it," {a.he} thought.] '
        "But that was not "
        "right.",
        'So {a} went to {b}. "[I am so sorry|I am sorry, {b}]," {a.he} said. "I broke your {t}."',
        '{b} was [sad|quiet] for a moment. Then {b.he} said, "[Thank you for telling the truth|I '
        "am glad you "
        'told me]."',
        "Together they took {t.the} to Uncle Wood, the carpenter. [He looked at it and "
        "nodded.|He had glue and a "
        "small hammer.]",
        "[Soon|After a while] {t.the} was [whole again|as good as new]. [{a} thanked Uncle Wood.|]",
        "[{a} and {b} were still friends.|It is good to tell the truth.|After that, {a} was more "
        "careful.]",
    ),
    questions=(
        ("What did {a} break?", "{a} broke {t.the} of {b}."),
        ("Who mended {t.the}?", "Uncle Wood mended it."),
        ("How did it break?", "{Slip}."),
    ),
)

ERRAND = Plot(
    about="a letter",
    picks=(
        (
            {"block": "the bridge was broken", "way": "crossed the river in a boat"},
            {
                "block": "a cow stood on the path",
                "way": "gave the cow some grass, and it went away",
            },
            {"block": "the path was full of snow", "way": "took the sled"},
            {"block": "it was foggy", "way": "followed the sound of the bell"},
        ),
        (
            {"load": "a letter"},
            {"load": "a basket of eggs"},
            {"load": "a bag of flour"},
            {"load": "a pot of honey"},
        ),
    ),
    beats=(
        '"[Can you help me|I need your help], {a}?" asked {g}. "Please bring {load} to {b}."',
        '"[Yes, gladly|Of course]," said {a}. {b} was {p.at}[, and that was a long way|]. [{pet} '
        "came along.|]",
        "{a} [walked|went] along the path with {load}. [The birds were singing.|{a.He} sang a "
        "song.|]",
        'But near {p2}, {block}. [{a} could not go on.|{a} stopped.] ["What now?" {a.he} '
        "said.|{a.He} thought hard.]",
        "[Then {a.he} had an idea.|{a} did not give up.] {a.He} {way}.",
        'At last {a} came to {p}. {b} was waiting there. "[Here is {load} for you|This is from '
        '{g}]," said {a}.',
        '"Thank you, {a}!" said {b}. [{b.He} gave {a.him} some {b.food}.|They sat down and '
        "rested.|{b} was very glad.]",
        '[When {a} came home, {g} said, "Well done!"|{a} was tired but proud.]',
    ),
    questions=(
        ("What did {a} carry?", "{a} carried {load}."),
        ("Who got {load}?", "{b} got {load}."),
        ("Why did {a} stop?", "{a} stopped because {block}."),
    ),
)

LEARN = Plot(
    about="learning",
    picks=(
        (
            {
                "skill": "swim",
                "where": "by the river",
                "fail": "swallowed some water",
                "done": "swam across the river",
            },
            {
                "skill": "ride",
                "where": "on the farm",
                "fail": "fell into the hay",
                "done": "rode around the farm",
            },
            {
                "skill": "whistle",
                "where": "on the hill",
                "fail": "only blew air",
                "done": "whistled a whole song",
            },
            {
                "skill": "read",
                "where": "in the library",
                "fail": "mixed up the letters",
                "done": "read a whole page",
            },
            {
                "skill": "skate",
                "where": "on the ice",
                "fail": "slipped and sat down",
                "done": "skated in a big circle",
            },
        ),
    ),
    beats=(
        "{b} could {skill} very well, but {a} could not. [{a} wanted to learn it.|{a} wished "
        "{a.he} could "
        "{skill} too.]",
        '"[Can you teach me to {skill}|Will you show me]?" {a} asked. "[Of course|Yes]," said '
        '{b}. "[Come with '
        'me|Let us start]."',
        'They met {where}. [{b} showed {a} how to do it.|"Look at me first," said {b}.] Then {a} '
        "tried. {a.He} {fail}.",
        '"[I will never learn it|It is too hard]," said {a}. "[Try again|Everybody falls at '
        'first]," said {b}. '
        '"[I needed many days too|Do it slowly]."',
        "[The next day|After lunch], {a} tried again. [It was a little better.|{a.He} {fail} "
        "again, but {a.he} "
        "laughed.]",
        "[After a week|Day after day {a} practiced. Then], {a.he} {done}! [{b} clapped.|{pet} "
        "was surprised.]",
        '"[I did it|I can {skill}]!" [cried|said] {a}. "[I knew you could|You did not give up]," '
        "said {b}.",
    ),
    questions=(
        ("What did {a} learn?", "{a} learned to {skill}."),
        ("Who taught {a}?", "{b} taught {a} to {skill}."),
        ("Where did they practice?", "They practiced {where}."),
    ),
)

KEY = Plot(
    about="an old key",
    picks=(
        (
            {"inside": "a map of Fernby", "then": "They followed the map all day."},
            {"inside": "{t.a}", "then": "Now they could {use}."},
            {"inside": "a letter from long ago", "then": 'It said: "Be kind to your friends."'},
            {"inside": "a bag of gold coins", "then": "They bought honey cake for everybody."},
        ),
        ({"lock": "a small door"}, {"lock": "a wooden chest"}, {"lock": "an iron box"}),
    ),
    beats=(
        "[One day|While {a.he} was playing|In the morning], {a} found an old key {p.at}, {spot1}.",
        '"[What does it open|Where is the lock]?" {a.he} asked. [{a} showed it to {b}.|{b} '
        "looked at the key too.] "
        '"[Let us try it|Let us find out]," said {b}.',
        "First they tried it {p2.at}, but the key [was too big|was too small|did not turn].",
        '[Then they asked {g}.|They went to {g}.] "[I know this key|I have seen it before]," '
        'said {g}. "Go to {p3}."',
        "{a} and {b} [ran|hurried] to {p3}. There was {lock}, {spot}. [{a} put in the "
        "key.|{a.His} hand shook.]",
        "[Click! It opened.|The key turned.] Inside was {inside}! {then}",
        "[{a} kept the key.|They gave the key back to {g}.|It was the best day of the year.]",
    ),
    questions=(
        ("What did {a} find?", "{a} found an old key."),
        ("What was inside?", "Inside was {inside}."),
        ("What did the key open?", "The key opened {lock} {p3.at}."),
    ),
)

PLOTS = (
    LOST,
    GIFT,
    RAIN,
    RESCUE,
    BAKE,
    SWAP,
    BUILD,
    HIDE,
    NIGHT,
    SHARE,
    SEED,
    PICNIC,
    BROKEN,
    ERRAND,
    LEARN,
    KEY,
)
