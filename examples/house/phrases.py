"""How people say what a house shall do: templates by family.

A family is `== KIND TOOL FORM MODES [DOMAINS]`, then one template a line. Templates are written as Home Assistant's: `(a|b)`,
`[optional]`, `(a;b)` in any order, `<rule>`, `{slot}`. FORM: `imp`, what "could you ..." may stand before, or `say`. MODES, what the
command may be for: `n` a device by its name or a part of it, `p` devices by a plural, `g` what is here, `a` an area, `h` the house,
`m` several. A KIND with `!` is held out: no training sentence is of it.

Slots: `{t}` the target, `{n}` and `{loc}` the same in two pieces, `{b}` without an article, `{is}` is or are, `{v}` the value.
"""

RULES = {
    "turn": "(turn|turn|turn|switch|switch|put|flip)",
    "turned": "(turned|switched)",
    "set": "(set|set|set|change|put|turn|adjust|bring|switch)",
    "make": "(set|make|make|turn|change)",
    "to": "(to|to|to|at|on)",
    "want": "(i want|i need|i'd like|i would like|i'd love|we want|we need|i wanna have|let me have|let's have)",
    "bit": "(a bit|a little|a little bit|a tad|slightly|a touch|somewhat|some|a notch|a bit more|one step|more)",
    "abit": "[<bit>]",
    "too": "(too|too|way too|so|very|really|pretty|a bit too|a little too|much too|far too|awfully|kind of|quite|super)",
    "toostrict": "(too|too|way too|a bit too|a little too|much too|far too|just too|still too)",
    "going": "(going|running|started|working)",
    "up": "(up|up|up|way up)",
    "here": "(here|in here)",
}  # fmt: skip

COMMANDS = """
== on.verb turn_on imp ngahm
<turn> on {t}
<turn> on {t}
<turn> {n} on {loc}
<turn> {n} on {loc}
{loc} <turn> on {n}
== on.start turn_on imp ngahm light,switch,fan,climate
(activate|enable|power on|power up|fire up|start up|start|activate) {t}
(power|fire) {n} up {loc}
(power) {n} on {loc}
get {t} <going>
get {t} (on|<turned> on|lit up)
set {t} to on
make {t} (turn|go|come|switch) on
make sure {t} {is} [<turned>] on
have {t} <turned> on
(bring|turn) {n} back on {loc}
turn back on {t}
== on.short turn_on say ngahm
{b} on
{b} on
{n} on {loc}
on {t}
{b} [to] on
on with {t}
{b} (on now|on again|back on)
== on.want turn_on say ngahm
<want> {t} (on|<turned> on)
<want> {n} on {loc}
{t} (should|must) be (on|<turned> on)
{t} (needs to|has to) (be|go) on
i need you to <turn> {n} on {loc}
it's time to <turn> on {t}
== on.mind turn_on say ngahm
(would|do) you mind (turning|switching|putting) (on {t}|{n} on {loc})
(i would appreciate|i'd appreciate|how about) (you|) (turning|switching) (on {t}|{n} on {loc})
== on.please_get! turn_on say nga light,switch,fan
let's get {t} on
(see to it|see) that {t} {is} on
{t} please switch (it|) on
i would be happy if {t} (was|were) on
== on.light turn_on imp gah light
put {t} on
(light|brighten) up {place}
illuminate {place}
(give me|give us|make|put on|get me|i want|i need|we need|create) (some|a little|) (light|lighting) {loc}
(throw|put|stick) {n} on {loc}
let there be light {loc}
<turn> the light on {loc}
(lights|light) on {loc}
get (the|some) (lights|light) on {loc}
turn on the illumination {loc}
== on.dark turn_on say ga light
it's <too> dark {loc}
it is <too> dark {loc}
(it's|it is|it's getting|it has gotten|it got) dark {loc}
i (can't|cannot|can not|can hardly|can barely) see (a thing|anything|what i'm doing|my hands|where i'm going|) {loc}
i (can't|cannot) see (a thing|anything) it's [<too>] dark {loc}
i'm (sitting|standing) in the dark {loc}
(we|i) (need|could use|want) (some|) light {loc}
there is no light {loc}
nobody can see (a thing|anything) {loc}
== on.gloom! turn_on say ga light
it is pitch (dark|black) {loc}
i keep stumbling in the dark {loc}
== off.verb turn_off imp ngahm
<turn> off {t}
<turn> off {t}
<turn> {n} off {loc}
<turn> {n} off {loc}
{loc} <turn> off {n}
shut off {t}
shut {n} off {loc}
== off.kill turn_off imp ngahm light,switch,fan,climate,media_player
(deactivate|disable|power off|power down|shut down|kill|cut|shut off|switch off) {t}
(power|shut) {n} (down|off) {loc}
set {t} to off
make {t} (turn|go|switch) off
make sure {t} {is} [<turned>] off
have {t} <turned> off
get {t} (off|<turned> off)
(click|flick) {n} off {loc}
switch {t} to off
turn {n} back off {loc}
== off.short turn_off say ngahm
{b} off
{b} off
{n} off {loc}
off {t}
{b} to off
off with {t}
{b} (off now|off again)
== off.want turn_off say ngahm
<want> {t} (off|<turned> off)
<want> {n} off {loc}
{t} (should|must) be (off|<turned> off)
{t} (needs to|has to) (be|go) off
(i don't need|we don't need|nobody needs) {t} (anymore|any longer|any more|right now)
(i'm|we're) (done with|finished with) {t}
i need you to <turn> {n} off {loc}
it's time to <turn> off {t}
{t} can go off
== off.left turn_off say n light,switch,fan
(i|we) (forgot|forgot) to <turn> off {t}
i (left|think i left|must have left) {t} on (<turn> it off|please turn it off|can you turn it off|turn it off please)
{t} is still on (<turn> it off|please turn it off|can you turn it off)
{t} is on <turn> it off
== off.mind turn_off say ngahm
(would|do) you mind (turning|switching|shutting) (off {t}|{n} off {loc})
(i would appreciate|i'd appreciate|how about) (you|) (turning|switching) (off {t}|{n} off {loc})
== off.see_to! turn_off say nga light,switch,fan
let's get {t} off
(see to it|see) that {t} {is} off
{t} please switch (it|) off
{t} had better be off
== off.light turn_off imp gah light
put {t} out
put out {t}
(lights|light) (out|off) {loc}
make it (dark|completely dark|pitch dark) {loc}
darken {place}
extinguish {t}
<turn> {n} out {loc}
(douse|blow out|kill) {t}
no (light|more light|lights) {loc}
== off.dark! turn_off say ga light
(i want|i'd like) it (completely|totally) dark {loc}
i don't want any light {loc}
== bright.set set_brightness imp ngahm light
<set> {t} <to> {v}
<set> {t} <to> {v}
<set> {n} <to> {v} {loc}
<set> the brightness of {t} <to> {v}
<set> the {b} brightness <to> {v}
<set> the brightness <to> {v} (on|for|of) {t}
(dim|turn down|lower|reduce|decrease|turn) {t} [down] to {v}
(raise|increase|turn up|brighten|bump up|bring up) {t} to {v}
(dim|turn|bring) {n} (down|) to {v} {loc}
(turn|bring|put) {n} up to {v} {loc}
make {t} {v} (bright|brightness)
turn {t} on at {v}
turn on {t} (at|to|with) {v} [brightness]
== bright.short set_brightness say ngahm light
{b} {v}
{b} (at|to) {v}
{b} brightness {v}
<want> {t} (at|on) {v} [brightness]
brightness of {t} (to|at|) {v}
== bright.here set_brightness imp ga light
<set> the brightness {loc} <to> {v}
<set> brightness <to> {v} {loc}
brightness {loc} {v}
== bright.level! set_brightness say nga light
{t} should shine at {v}
run {t} at {v} brightness
== up.verb brighten imp ngahm light
brighten {t} <abit>
brighten [up] {t} <abit>
(turn|crank|bump) up {t} <abit>
(turn|crank|bring|bump|pump) {n} up <abit> {loc}
(raise|increase|boost|up|step up) (the brightness of|the intensity of|) {t} <abit>
(raise|increase|boost|turn up|up) the {b} brightness <abit>
(raise|increase|turn up) the (brightness|light level|intensity) (of|on|for) {t}
make {t} [<abit>] brighter
(set|turn|get) {t} brighter
make {n} (stronger|more intense|more bright) {loc}
increase {t} by {step} [percent]
give {t} more (power|brightness)
== up.here brighten imp ga light
make it [<abit>] brighter {loc}
(turn up|increase|raise|boost|up) the (brightness|light level|lighting|lights|light) {loc} <abit>
(brighten up|lighten up|brighten) {place} <abit>
(give me|i need|i want|we need|let's have|let me have) (more|a bit more|a little more|some more) light {loc}
get it brighter {loc}
brightness up {loc}
make {place} [<abit>] brighter
== up.say brighten say ngahm light
{b} (brighter|a bit brighter|up|brighter please)
<want> {t} [<abit>] brighter
{t} {is} <toostrict> (dim|weak|low|faint)
{t} {is} not bright enough
{t} could be [<abit>] brighter
brighter {loc}
== up.dim brighten say ga light
it's <toostrict> dim {loc}
(the light|the lighting) {loc} is <toostrict> (dim|low|weak)
it's not bright enough {loc}
(a bit|a little|much) brighter {loc}
there's not enough light {loc}
i (can't|can hardly) read it's <toostrict> dim {loc}
it could be [<abit>] brighter {loc}
more light {loc}
== up.strain! brighten say ga light
my eyes hurt from this dim light {loc}
could i have it brighter {loc}
== dim.verb dim imp ngahm light
dim {t} <abit>
dim {t} <abit>
dim [down] {t}
dim {n} <abit> {loc}
(turn down|lower|reduce|decrease|soften|take down|bring down|tone down) {t} <abit>
(turn|bring|take) {n} down <abit> {loc}
(lower|reduce|decrease|turn down) (the brightness of|the intensity of) {t} <abit>
(lower|reduce|decrease|turn down) the {b} brightness <abit>
(lower|reduce|decrease|turn down) the (brightness|light level|intensity) (of|on|for) {t}
make {t} [<abit>] (dimmer|darker|softer|less bright|less intense|lower)
(set|turn) {t} (dimmer|lower|low|down low)
put {n} on low {loc}
(reduce|decrease|dim|lower) {t} by {step} [percent]
== dim.here dim imp ga light
make it [<abit>] (dimmer|darker|less bright) {loc}
(turn down|lower|reduce|decrease|dim) the (brightness|light level|lighting|lights|light) {loc} <abit>
brightness down {loc}
dim {place} <abit>
== dim.say dim say ngahm light
{b} (dimmer|a bit dimmer|lower|dim|down)
<want> {t} [<abit>] (dimmer|dimmed|lower|less bright)
{t} {is} <toostrict> (bright|strong|glaring|harsh|intense)
{t} should be [<abit>] (dimmer|less bright)
{t} could be [<abit>] (dimmer|less bright)
dimmer {loc}
== dim.bright dim say ga light
it's <toostrict> bright {loc}
(the light|the lighting) {loc} is <toostrict> (bright|harsh|strong)
(less|a bit less|a little less) light {loc}
(a bit|a little|somewhat) (dimmer|less bright|softer) {loc}
(the light|this light) (hurts|is hurting) my eyes {loc}
it's so bright {loc} my eyes hurt
== dim.blind! dim say ga light
this light is blinding me {loc}
there's too much light {loc}
== color.set set_color imp ngahm light
<make> {t} {v}
<make> {t} {v}
<make> {n} [to] {v} {loc}
(set|change|switch|turn) {t} to {v}
(set|change|switch) the (color|colour) of {t} to {v}
(set|change) the {b} (color|colour) to {v}
(turn|switch) {t} to (the color|the colour|a|) {v}
make {t} (glow|shine|go|be|look) {v}
(color|colour|paint|light) {t} {v}
have {t} {v}
(put|turn) {t} on {v}
change {t} from {other} to {v}
== color.say set_color say ngahm light
{b} {v}
{b} (to|in) {v}
<want> {t} {v}
<want> {t} to (be|go|turn) {v}
{t} should be {v}
== color.here set_color imp ga light
(give me|i want|i'd like|put on|turn on|make) (a|some|) {v} (light|lights|lighting) {loc}
make it {v} {loc}
turn on {v} (light|lights) {loc}
(set|change|switch) the (color|colour) {loc} to {v}
(set|switch|change) to {v} (light|lights|lighting) {loc}
{v} (light|lights) {loc}
make {place} {v}
== color.glow! set_color say ga light
bathe {place} in {v} [light]
i feel like {v} light {loc}
== open.verb open imp ngahm cover
open [up] {t}
open {t}
open {n} {loc}
(raise|lift|roll up|pull up|put up|wind up) {t}
(roll|pull|put|wind|bring) {n} up {loc}
get {t} open
make {t} (open|go up)
make sure {t} {is} open
== open.say open say ngahm cover
{b} (open|up)
<want> {t} (open|opened|up)
{t} (should|must) be open
{t} (up|open) please
would you mind opening {t}
== open.sun open say ga cover:window
(let|let) (the|some) (sun|sunlight|daylight|sunshine|light) in {loc}
let in (some|the) (sunlight|daylight|sunshine|sun) {loc}
(i want|i'd like) to see (outside|out|the sky|the garden) {loc}
== open.view! open say ga cover:window
i want (some|the) (morning sun|daylight) {loc}
how about a view of the sky {loc}
== close.verb close imp ngahm cover
close {t}
close {n} {loc}
(shut|close up|close|lower|roll down|pull down|put down|drop|wind down|bring down) {t}
(roll|pull|put|wind|bring|let) {n} down {loc}
get {t} (closed|shut)
make {t} (close|go down)
make sure {t} {is} (closed|shut)
== close.say close say ngahm cover
{b} (closed|down|shut|close)
<want> {t} (closed|shut|down)
{t} (should|must) be closed
{t} (down|closed) please
would you mind (closing|shutting|lowering) {t}
== close.sun close say ga cover:window
(keep|block|shut) (the sun|the sunlight|the daylight) out {loc}
(block|shut out|keep out) the (sun|sunlight|daylight) {loc}
the sun is (blinding me|in my eyes|shining in my face|shining on the screen) {loc}
(everybody|everyone|the neighbors|people) can (see|look) (in|inside) {loc}
the neighbours are (looking in|watching) {loc}
== close.glare! close say ga cover:window
the sun is glaring on the tv {loc}
i need some privacy {loc}
== position.set set_position imp ngahm cover
<set> {t} <to> {v}
(open|close|raise|lower|move|set|put) {t} to {v}
(open|set|raise) {t} {v} [open]
(open|raise) {n} to {v} {loc}
(open|close) {t} (up|) to {v}
set the position of {t} to {v}
set the {b} position to {v}
== position.half set_position imp ngahm cover
(open|close) {t} {half}
{half} (open|close) {t}
(put|pull|roll|let|leave|set) {n} (half way|halfway) (up|down|open|closed) {loc}
== position.say set_position say ngahm cover
{b} {v}
{b} (to|at) {v}
{b} {v} open
<want> {t} {v} open
== lock.verb lock imp ngahm lock
lock {t}
lock {t}
lock {n} {loc}
(lock up|bolt|secure) {t}
(get|keep) {t} locked
make sure {t} {is} locked
lock {n} up {loc}
set {t} to locked
== lock.say lock say ngahm lock
{b} (locked|lock)
<want> {t} locked
{t} (should|must|needs to) be locked
would you mind locking {t}
(i|we) forgot to lock {t}
== lock.house lock imp H lock
lock (up|up the house|the house|the house up|everything|everything up|the whole house|up everything)
(secure|lock down) the (house|home|place|whole house)
make sure (the house|everything) is locked [up]
== unlock.verb unlock imp ngahm lock
unlock {t}
unlock {t}
unlock {n} {loc}
(unbolt|unlatch) {t}
(get|have) {t} unlocked
make sure {t} {is} unlocked
set {t} to unlocked
take the lock off {t}
== unlock.say unlock say ngahm lock
{b} (unlocked|unlock)
<want> {t} unlocked
{t} (should|must|needs to) be unlocked
would you mind unlocking {t}
== temp.set set_temperature imp ngahm climate
<set> {t} <to> {v}
<set> {t} <to> {v}
(set|change|adjust|turn|put|bring) {n} <to> {v} {loc}
(raise|increase|turn up|lower|reduce|turn down|drop) {t} to {v}
(turn|crank|bring) {n} (up|down) to {v} {loc}
set the temperature (of|on|for) {t} to {v}
(set|adjust|change) the {b} temperature to {v}
== temp.here set_temperature imp ga climate
(set|change|adjust|raise|lower|bring|put|increase|turn) the (temperature|temp) {loc} to {v}
(set|change|adjust|raise|lower|bring|put|increase|turn) the (temperature|temp) to {v} {loc}
(heat|warm|cool) {place} [up|down] to {v}
(make|get) it {v} {loc}
keep it at {v} {loc}
set it to {v} {loc}
warm it up to {v} {loc}
keep {place} at {v}
bring {place} to {v}
== temp.say set_temperature say ngahm climate
{b} [to|at|on] {v}
<want> {t} (at|on|set to) {v}
<want> it to be {v} {loc}
<want> it {v} {loc}
temperature {loc} [to] {v}
it should be {v} {loc}
== temp.cosy! set_temperature say ga climate
i feel best at {v} {loc}
{v} would be (nice|perfect|good) {loc}
== warm.verb warmer imp ngahm climate:heat
(turn|crank|bump) up {t} <abit>
(turn|crank|bump|put|bring) {n} up <abit> {loc}
(raise|increase|boost|up) {t} <abit>
make {t} [<abit>] warmer
(set|turn) {t} [<abit>] higher
== warm.here warmer imp ga climate
make it [<abit>] (warmer|hotter) {loc}
(turn up|raise|increase|bump up|crank up|boost|up) the (temperature|temp|heat) {loc} <abit>
(turn|crank|bump|put) the (heat|temperature|temp) up <abit> {loc}
(warm|heat) up {place} <abit>
(warm|heat) {place} up <abit>
(warm|heat) it up <abit> {loc}
(raise|increase|turn up) the temperature {loc} by {deg}
make it {deg} (warmer|hotter) {loc}
give me (more|some more|a bit more) (heat|warmth) {loc}
get it warmer {loc}
more (heat|heating|warmth) {loc}
== warm.cold warmer say ga climate
it's <too> (cold|chilly|cool|freezing|frosty) {loc}
it is <too> (cold|chilly|cool) {loc}
(it's|it is|it's getting) (freezing|cold|chilly|freezing cold|ice cold|icy) {loc}
(i'm|i am|we're|we are) (freezing|cold|so cold|very cold|freezing to death|shivering|feeling cold|getting cold|chilly) {loc}
my (feet|hands|toes) are (cold|freezing|frozen|ice cold) {loc}
(warmer|a bit warmer|a little warmer|warmer please) {loc}
(i|we) (need|want) it [<abit>] warmer {loc}
temperature up {loc}
it's not warm enough {loc}
{deg} warmer {loc}
it could be [<abit>] warmer {loc}
(the kids|the kid|the baby|grandma|my wife|my husband) (is|are) (cold|freezing) {loc}
== warm.ice! warmer say ga climate
it's like a (fridge|freezer|igloo) {loc}
my teeth are chattering {loc}
== cool.verb cooler imp ngahm climate:heat
turn down {t} <abit>
(turn|bring|put|take) {n} down <abit> {loc}
(lower|reduce|decrease|drop) {t} <abit>
make {t} [<abit>] cooler
(set|turn) {t} [<abit>] lower
== cool.here cooler imp ga climate
make it [<abit>] (cooler|colder|less warm|less hot) {loc}
(turn down|lower|reduce|decrease|drop|bring down) the (temperature|temp|heat) {loc} <abit>
(turn|bring|put) the (heat|temperature|temp) down <abit> {loc}
cool [down] {place} <abit>
cool {place} down <abit>
cool it down <abit> {loc}
(lower|reduce|turn down) the temperature {loc} by {deg}
make it {deg} (cooler|colder) {loc}
less (heat|heating) {loc}
get it cooler {loc}
== cool.hot cooler say ga climate
it's <too> (hot|warm|stuffy and hot) {loc}
it is <too> (hot|warm) {loc}
(it's|it is|it's getting) (boiling|boiling hot|roasting|sweltering|hot|like an oven) {loc}
(i'm|i am|we're|we are) (hot|too hot|so hot|sweating|boiling|roasting|melting|overheating|dying of heat) {loc}
(cooler|a bit cooler|a little cooler|cooler please|colder) {loc}
(i|we) (need|want) it [<abit>] (cooler|colder) {loc}
temperature down {loc}
it's not cool enough {loc}
{deg} (cooler|colder) {loc}
it could be [<abit>] cooler {loc}
== cool.sauna! cooler say ga climate
it's like a (desert|furnace) {loc}
this heat is killing me {loc}
== speed.set set_speed imp ngahm fan
<set> {t} <to> {v}
<set> {n} <to> {v} {loc}
<set> the speed of {t} <to> {v}
<set> the {b} speed <to> {v}
(run|turn on|turn|spin|put) {t} (at|to|on) {v} [speed]
(turn up|turn down|slow|increase|reduce|slow down|speed up) {t} to {v}
let {t} (run|spin|blow) at {v}
== speed.say set_speed say ngahm fan
{b} {v}
{b} (at|to|on) {v}
{b} speed [to] {v}
<want> {t} (at|on) {v}
== volume.set set_volume imp n media_player
<set> {t} <to> {v}
(turn|bring) {n} (up|down) to {v} {loc}
(turn up|turn down|raise|lower|increase|reduce) {t} to {v}
== volume.of set_volume imp nggga media_player
<set> {vol} <to> {v}
<set> {vol} <to> {v}
<set> {vol} <to> {v}
(turn|bring) {vol} (up|down) to {v}
(turn up|turn down|raise|lower|increase|reduce|decrease|drop|bump up) {vol} to {v}
put {vol} (on|at) {v}
== volume.say set_volume say ngga media_player
{bvol} {v}
{bvol} (to|at|on) {v}
<want> {vol} (at|on|to be) {v}
volume to {v} {volloc}
make {vol} {v}
== mute.verb set_volume=0 imp nga media_player
(mute|silence) {t}
mute {t}
mute {vol}
put {t} on mute
(mute|turn off|cut) the (sound|volume|audio) {volloc}
(mute|sound off|no sound|mute it|mute the sound) {volloc}
turn {vol} all the way down
== loud.verb louder imp n media_player
(turn|crank|pump|bump) up {t} <abit>
(turn|crank|pump|bump) {n} up <abit> {loc}
make {t} [<abit>] louder
(raise|increase) {t} <abit>
play {t} louder
== loud.vol louder imp nggga media_player
(turn|crank|pump|bump) up {vol} <abit>
(turn|crank|pump|bump|bring|put) {vol} up <abit>
(raise|increase|boost|up) {vol} <abit>
(raise|increase|turn up) {vol} by {step} [percent]
make {vol} [<abit>] (louder|higher)
== loud.say louder say nga media_player
(louder|a bit louder|a little louder|louder please|much louder|speak up|play louder) {volloc}
(make it|play it|turn it) [<abit>] louder {volloc}
(volume up|turn it up|crank it up|pump it up|pump up the volume|sound up|music up) {volloc}
{bvol} up
{b} (louder|up)
(i|we) (can't|cannot|can hardly|can barely) hear {tv}
i (can't|cannot|can hardly|can barely) hear (a thing|anything|it|the music) {volloc}
{tv} {isv} <toostrict> (quiet|low|soft|silent)
{vol} is <toostrict> (low|quiet)
<want> {tv} [<abit>] louder
{tv} {isv} not loud enough
more volume {volloc}
== loud.deaf! louder say ga media_player
this is (hardly|barely) audible {volloc}
give me some more (sound|noise) {volloc}
== quiet.verb quieter imp n media_player
(turn|bring|tone) down {t} <abit>
(turn|bring|tone|take) {n} down <abit> {loc}
make {t} [<abit>] (quieter|less loud|softer)
lower {t} <abit>
== quiet.vol quieter imp nggga media_player
(turn|bring|tone) down {vol} <abit>
(turn|bring|put|take|keep) {vol} down <abit>
(lower|reduce|decrease|drop) {vol} <abit>
(lower|reduce|decrease|turn down) {vol} by {step} [percent]
make {vol} [<abit>] (quieter|lower|softer)
== quiet.say quieter say nga media_player
(quieter|a bit quieter|a little quieter|quieter please|not so loud|softer|less loud) {volloc}
(make it|play it|turn it) [<abit>] (quieter|softer) {volloc}
(volume down|turn it down|turn it down a bit|sound down|music down|tone it down) {volloc}
{bvol} down
{b} (quieter|softer)
{tv} {isv} <toostrict> (loud|noisy)
{vol} is <toostrict> (high|loud)
it's <toostrict> loud {volloc}
<want> {tv} [<abit>] (quieter|softer)
(i can't|we can't|i can hardly) hear myself (think|talk) {volloc}
less (volume|noise) {volloc}
the neighbors are complaining about {tv}
== quiet.ears! quieter say ga media_player
my ears hurt [from {tv}]
i have a headache not so much noise {volloc}
== play.verb play imp nga media_player
(play|start|resume|continue|unpause|put on|start playing) (the|some|my|) music {volloc}
(resume|continue|unpause|keep) (playing|playback|) {volloc}
(play|resume|continue|unpause) {on}
(start|resume|continue) (playing|playback) {on}
keep (the music going|playing) {volloc}
hit play {on}
== play.say play say ga media_player
(i want|i'd like|i feel like) (some|a bit of|to listen to some|hearing some|to hear some) music {volloc}
(some music|music) please {volloc}
(let's have|let's hear|let's listen to|give me) some music {volloc}
go on with the (music|song|movie|film|show) {volloc}
continue (with the|the) (movie|film|show|song|podcast|album) {volloc}
it's (too|so) (quiet|silent) {volloc} (play some music|put some music on)
== pause.verb pause imp nga media_player
pause {on}
pause the (music|song|movie|film|show|playback|video|podcast|audio|track) {volloc}
(stop|halt|pause|hold|freeze|interrupt) the (music|song|playback|movie|film|video) {volloc}
(stop|pause) (playing|playback) {on}
(pause|pause it|stop playing|put it on pause) {volloc}
put {tv} on pause
hit pause {on}
stop playing (music|the music|this song|that) {volloc}
== pause.say pause say ga media_player
(no more music|enough music|that's enough music|music pause|that's enough of this song) {volloc}
i don't want to (listen to|hear) (music|this music|the music) (anymore|any more|now) {volloc}
hold on with the (movie|film|show|music) {volloc}
== next.verb next imp nga media_player
(skip|next) (song|track|this song|this track|this one) {volloc}
(skip|jump|go|switch|change|move on|move) to the next (song|track|one|title|number|episode) {volloc}
(play|give me|put on) the next (song|track|one|title) {volloc}
(skip the|skip that|next) (song|track|one) {volloc}
(next song|next track|next|next one|next please|skip|skip it|skip ahead|another song) {volloc}
next (song|track) {on}
== next.say next say ga media_player
i (don't like|hate|can't stand) this (song|track|one) {volloc} (skip it|next one please|next|play the next one)
(i want|let's hear) (the next|another) (song|track) {volloc}
not this (song|one) [again] (skip it|next|skip)
== vacuum.verb start imp nh vacuum
(start|run|activate|turn on|switch on|start up|fire up|power on|launch) {t}
turn {n} on {loc}
(get|set) {t} (going|to work|running|cleaning|started)
(let|have|make) {t} (clean|run|vacuum|start|do its job) [(the floor|the house|up)]
(send) {t} (out|out to clean|cleaning)
tell {t} to (clean|start|vacuum) [(the floor|{anyarea})]
have {t} (clean|vacuum|do) {anyarea}
== vacuum.generic start imp g vacuum
(start|run|activate|turn on|switch on|start up|fire up) {t}
turn {n} on
get {t} (going|running|cleaning|started)
(let|have) {t} (clean|run) [(the floor|the house|up)]
== vacuum.clean start imp g vacuum
(clean|vacuum|hoover|sweep) (the floor|the floors|the house|the carpet|the rug|the whole house|the apartment|up|the place|the flat)
(clean|vacuum|hoover|sweep|do) {anyarea}
(clean|vacuum|hoover|sweep) the (floor|carpet|floors) {inany}
(start|begin) (cleaning|vacuuming|hoovering|to vacuum|sweeping) [(the house|the floor|{anyarea})]
do the (vacuuming|hoovering|floors)
(do|give) {anyarea} a (clean|quick clean|sweep)
== vacuum.dirty start say g vacuum
the (floor|carpet|rug) {inany} is [<too>] (dirty|dusty|filthy|covered in crumbs|full of crumbs)
there (are crumbs|is dust|is dirt|is dog hair|is cat hair) (all over|on) the (floor|carpet)
(i want|i'd like|we need|i need) (the floor|the floors|{anyarea}) (vacuumed|hoovered|cleaned|swept)
{anyarea} needs (vacuuming|hoovering|cleaning|a clean|to be vacuumed)
it's time to (vacuum|hoover|clean the floor|sweep)
{b} (start|on|go)
== vacuum.spill! start say g vacuum
someone spilled flour on the floor {inany}
the kids dropped crumbs everywhere
== dock.verb dock imp nhg vacuum
dock {t}
(send|return|bring|take) {t} (home|back|to base|back to base|to its base|to its dock|to the dock|to its charger|back to the charging station|back to its station)
(send|bring) {n} (home|back) {loc}
(park|recharge|charge) {t}
(have|make|let) {t} (go home|go back to base|return to base|go back|return to its dock)
tell {t} to (go home|return|go back|return to base|dock)
== dock.say dock say nhg vacuum
{t} (should|can|may) go (home|back to base|back to its dock)
{b} (go home|return to base|back to base|dock|go back)
(i'm done with|we're done with) {t} send it (home|back)
"""

# What is asked of an appliance by what it does. By a word of its name.
USES = {
    "coffee,espresso": """
make [me|us] [a|some|a cup of|the] coffee
(make|brew|prepare|get|fix|pour) (me|us) (a|some|a cup of|a fresh|a nice|a strong) coffee
(brew|make|prepare|start|put on) (the|some|a pot of) coffee
(i want|i need|i'd like|i would like|i'd love|i could use|i'm dying for|we want|i fancy) (a|some|a cup of) coffee
(time for|it's time for|how about) (a|some|) coffee
(a|one) coffee please
coffee please
can i (get|have) (a|some) coffee
(get|have) (the|my|some) coffee (going|ready|started|brewing)
(start|begin) (making|brewing) (the|some|my|) coffee
i need (caffeine|my caffeine|my morning coffee)
i'm (tired|so tired|sleepy) (make me a coffee|i need a coffee)
(make|brew) [me] (an espresso|a cappuccino|a latte|a cup of joe)
""",
    "kettle,tea": """
(boil|heat|warm up|heat up) (the|some|) water [for tea|for the tea]
(put|get) the (water|tea) on
make [me|us] (a|some|a cup of) tea
(i want|i'd like|i fancy|i need) (a|some|a cup of) tea
i need (hot|boiling) water
(time for|it's time for) tea
""",
    "toaster": """
(make|get) [me|us] [some] toast
toast (the|some|my) bread
(i want|i'd like) (some|) toast
""",
    "dishwasher": """
(wash|do|clean) the dishes
start (washing|cleaning) the dishes
the dishes (are dirty|need to be washed|need washing)
""",
    "washing": """
(do|start|wash) the laundry
(wash|clean) (my|the) clothes
start a (wash|load of laundry|wash cycle)
the laundry needs to be (done|washed)
""",
    "dryer": "dry (the|my) (clothes|laundry)",
    "oven": """
(preheat|heat up|warm up) the oven
i want to bake (a cake|bread|a pizza)
""",
    "towel": "(warm|heat) (up|) (the|my) towels",
    "sprinkler,sprinklers": """
water the (lawn|garden|grass|plants|flowers)
the (grass|lawn|garden) needs (water|watering)
""",
    "christmas": "light up the [christmas] tree",
    "blanket": "(warm|heat) up the (bed|blanket)",
    "router": "(turn|switch) on the (wifi|internet|wi fi)",
    "rice": "(cook|make) [me|us|some|the] rice",
    "popcorn": "make (some|) popcorn",
}

# A mood, and the scenes that it may mean, by a word of their names.
MOODS = {
    "movie,film,cinema": """
(let's|we're going to|i want to|i'm going to|we want to|time to) watch (a movie|a film|the movie|a good film)
it's (movie time|time for a movie|time for the film)
(movie|film) time
(set|prepare|get ready) [the room|everything|] for (a|the) (movie|film)
the (movie|film) is (about to start|starting)
""",
    "bedtime,night,sleep,slumber": """
(i'm|we're|i am|we are) going to (bed|sleep)
(i'm|we're) (off to|heading to|ready for) bed
(it's time|time) (for bed|to sleep|to go to bed|to go to sleep)
(good night|goodnight|night night|nighty night|sleep well|good night everyone)
(i want|i'd like) to (sleep|go to bed)
""",
    "party,dance": """
let's (party|dance|have a party)
(it's|) party time
(we're|i'm) having a party
(the party|our party) (is starting|starts now)
""",
    "dinner": """
dinner (is ready|is served|time)
(let's|we're going to|we are about to|time to) (have dinner|eat dinner)
it's (time for dinner|dinner time)
(set the mood|prepare everything) for dinner
""",
    "reading,story": """
(i want|i'd like|i'm going|i am about) to read [a book|my book|a bit|for a while]
(let's|time to) read (a story|a book)
""",
    "romantic,date": """
(i want|let's have|make it|set up|create) [a] romantic (evening|atmosphere|mood)
set the mood for (a date|my date|romance)
(my date|my girlfriend|my boyfriend) is coming over
""",
    "away,leaving,goodbye": """
(i'm|we're|i am) (leaving|leaving the house|leaving now|going out|off|off to work|heading out|going away)
(bye|goodbye|bye bye|see you later|see you tonight)
(nobody's|nobody is|no one is) home
""",
    "welcome": "(i'm|we're|i am|honey i'm) (home|back|back home|home again)",
    "morning,wake,breakfast": """
(good morning|morning|rise and shine|good morning everyone)
(i'm|we're) (awake|up|getting up)
(it's|) time to (get up|wake up)
""",
    "work,focus,homework": """
(i have|i need|i want|it's time|time) to (work|focus|concentrate|get some work done|do my homework|study)
i (must|should) (work|concentrate) now
""",
    "relax,cozy,meditation,yoga": """
(i want|i need|i'd like|it's time|time) to (relax|unwind|chill|wind down)
let's (relax|chill)
""",
    "game,games": """
let's play (a game|some games|video games|board games)
it's game time
""",
    "cooking": "(i'm going|i want|it's time|time) to cook [dinner|something|lunch]",
    "guests": "(the|our|my) guests (are here|have arrived|are coming|will be here soon)",
    "christmas": "(merry christmas|it's christmas)",
    "nap": "(i'm taking|i need|time for|it's time for) a nap",
}

SCENES = """
== scene.verb turn_on imp s scene
(turn on|activate|start|set|run|enable|play|launch|trigger|switch on) (the|) {s} [scene|mode|mood|lighting]
(turn on|activate|start|set|run|trigger) [the] {s}
(set|switch|change|go|turn|transition) to [the] {s} [scene|mode]
set [the] (scene|mood|mode|lights|house) to {s}
(set|activate|start|run|turn on) [the] scene {s}
turn [the] {s} [scene|mode] on
put (the house|us|everything) in {s} mode
(i want|i'd like|give me|let's have|we need) [the|some] {s} [scene|mode|mood|lighting|lights]
== scene.short turn_on say s scene
{s} [please|mode|scene|on|time|now|mode on|mode please]
{s} (please|mode|scene)
it's {s} time
time for {s}
let's do {s}
== scene.make! turn_on say s scene
make it feel like {s}
get everything ready for {s}
"""

EVERYTHING = """
== off.everything turn_off imp e
<turn> everything off {inx}
<turn> off everything {inx}
(shut|power) everything (down|off) {inx}
(shut|power) (down|off) everything {inx}
everything off {inx}
<turn> off (all devices|all the devices|all of the devices|every device|all appliances and lights) {inx}
(kill|deactivate|disable) everything {inx}
<turn> (all|all of it|every thing) off {inx}
i want everything off {inx}
(make sure|see that) everything is off {inx}
"""

# Before or after an imperative; {c} is the command.
WRAP_IMPERATIVE = """
please {c}
{c} please
can you {c}
can you please {c}
could you {c}
could you please {c}
could you {c} please
can you {c} for me
would you {c}
would you please {c}
will you {c}
will you please {c}
i want you to {c}
i need you to {c}
i'd like you to {c}
i would like you to {c}
i want to {c}
i need to {c}
i'd like to {c}
i would like to {c}
go ahead and {c}
just {c}
{c} now
{c} right now
{c} for me
{c} for me please
{c} thanks
{c} thank you
{c} would you
{c} will you
now {c}
ok {c}
okay {c}
okay now {c}
quickly {c}
kindly {c}
let's {c}
time to {c}
you can {c} now
you may {c}
be so kind and {c}
be a dear and {c}
do me a favor and {c}
do me a favour {c}
make sure to {c}
don't forget to {c}
remember to {c}
we need to {c}
can we {c}
could we {c}
can i get you to {c}
can i ask you to {c}
i was wondering if you could {c}
would it be possible to {c}
is it possible to {c}
may i ask you to {c}
you should {c}
you need to {c}
help me {c}
why don't you {c}
um {c}
uh {c}
uh could you {c}
well {c}
so {c}
hi {c}
hello {c}
hey {c}
hello can you {c}
listen {c}
alright {c}
hurry up and {c}
quick {c}
i said {c}
please just {c}
yes {c}
yeah {c}
and {c}
then {c}
{c} again
{c} if you can
{c} if you don't mind
if you don't mind {c}
if possible {c}
{c} as soon as possible
{c} immediately
{c} quickly
{c} when you get a chance
""".strip().splitlines()
WRAP_SAYING = """
{c} please
please {c}
{c} now
ok {c}
okay {c}
um {c}
uh {c}
well {c}
so {c}
hey {c}
hi {c}
hello {c}
{c} thanks
{c} thank you
listen {c}
{c} right now
alright {c}
{c} for me
you know {c}
oh {c}
hmm {c}
sorry {c}
{c} okay
""".strip().splitlines()
# Test sentences are also wrapped in these.
WRAP_HELD_OUT = """
might you {c}
{c} if you would
say {c}
i beg you {c}
would you be an angel and {c}
""".strip().splitlines()
WAKE = """hey {w}
ok {w}
okay {w}
{w}
{w}
hello {w}
hi {w}
yo {w}
{w} please
oi {w}
listen {w}""".splitlines()
ASSISTANTS = """alexa, siri, google, jarvis, computer, cortana, mycroft, nabu, house, home, assistant, bixby, echo, robo, hal, olivia, jenny,
    friday, merino, my house, buddy, butler, snips, rhasspy, samantha, olly, bot | hera, ziggy, marvin, athena"""

# Said before or after a command, by tool.
REASONS = {
    "turn_off": """the baby is sleeping, the baby sleeps, we're leaving, i'm going to bed, i'm going to sleep, nobody is in there, we have to save power,
        i'm leaving, the sun is up, it's late, nobody needs it, i'm trying to sleep, it's daytime, electricity is expensive, i'm off to work,
        i'm done here, we're going out, i forgot it""",
    "turn_on": """i'm coming home, i'm up, it's evening, we have guests, i need it, someone is at the door, i'm awake, we have visitors, i dropped something,
        i'm back, i'm looking for my keys, i'm working late, i heard a noise""",
    "set_brightness": "i want to read, we're watching a movie, my eyes are tired, we have guests, it's evening, i'm working",
    "brighten": "i can't read, i want to read, i'm sewing, i'm looking for something, i have to work, i need to see what i'm doing",
    "dim": "my eyes hurt, i have a headache, we're watching a movie, the baby sleeps, i'm tired, it's late, it's too bright",
    "set_color": "it's a party, i'm in the mood, it's christmas, we have a date, it's halloween, i'm bored of the old one, it's my birthday",
    "open": "it's morning, the sun is out, i want to see the sky, i need some daylight, it's a beautiful day, i'm awake, i'm home",
    "close": "it's night, it's too sunny, the sun is blinding me, the neighbors can see me, i want to sleep, i want some privacy, it's raining",
    "set_position": "the sun is low, it's too sunny, i want a little light",
    "lock": "we're leaving, i'm going to bed, it's late, i'm going out, nobody is home, i'm alone",
    "unlock": "i'm home, i'm at the door, my friends are coming, my mother is here, i forgot my key, the delivery is here",
    "set_temperature": "i'm cold, it's winter, the baby is here, we're coming home, guests are coming, i'm sweating",
    "warmer": "i'm cold, i'm freezing, it's winter, my feet are cold, it's snowing outside, i'm shivering",
    "cooler": "i'm sweating, i'm hot, it's summer, i can't sleep, i'm boiling",
    "set_speed": "it's hot, it's stuffy, i'm sweating, there is smoke, it's too loud",
    "set_volume": "i'm on the phone, the baby sleeps, i can't hear it, i have a headache, it's late, we have company",
    "louder": "i can't hear it, i can't hear anything, i love this song, i'm doing the dishes, it's my favorite song",
    "quieter": "i'm on the phone, the baby sleeps, the baby is sleeping, i have a headache, i can't hear you, the neighbors are complaining, i'm in a meeting, "
    "it's too loud, i'm trying to work, the kids are asleep",
    "play": "i'm bored, i'm back, it's too quiet, i'm ready",
    "pause": "the phone is ringing, i have to go, someone is at the door, i need a break, i'm getting a drink, i'll be right back",
    "next": "i don't like this one, i've heard this a hundred times, this one is boring, this is awful",
    "start": "the floor is dirty, the guests are coming, there are crumbs everywhere, the dog is shedding, we're leaving, i spilled something",
    "dock": "it's too loud, i'm on the phone, it's clean enough, that's enough, the baby sleeps",
}  # fmt: skip

# Verbs with which a speaker corrects what he names.
PLAIN = {
    "turn_on": ("turn on", "switch on", "put on"), "turn_off": ("turn off", "switch off", "shut off"), "dim": ("dim", "turn down"),
    "brighten": ("brighten", "turn up"), "open": ("open",), "close": ("close", "shut"), "lock": ("lock",), "unlock": ("unlock",),
}  # fmt: skip
CORRECTION = """
{verb} {wrong} no [wait|sorry] {t}
{verb} {wrong} (i mean|sorry i mean|no i mean|i meant|no i meant|wait i mean) {t}
{verb} {wrong} no (make that|i mean) {t}
{verb} {wrong} (oh no|wait no|no no|scratch that|sorry) {t}
{verb} {wrong} (actually|or rather|uh) (no|make it) {t}
{verb} not {wrong} but {t}
{verb} {t} not {wrong}
{verb} {t} [but] (leave {wrong} alone|leave {wrong} as it is)
"""
