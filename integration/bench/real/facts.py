# ruff: noqa: E501
"""Facts of which a small model knows some: ``question:answer`` or ``question:answer|other answer``, one after a semicolon."""

from __future__ import annotations

from typing import Final

CAPITALS: Final = (
    "France:Paris;Italy:Rome;Spain:Madrid;Portugal:Lisbon;Germany:Berlin;Austria:Vienna;Belgium:Brussels;"
    "Denmark:Copenhagen;Sweden:Stockholm;Norway:Oslo;Finland:Helsinki;Iceland:Reykjavik;Ireland:Dublin;Poland:Warsaw;"
    "Hungary:Budapest;Romania:Bucharest;Bulgaria:Sofia;Greece:Athens;Turkey:Ankara;Russia:Moscow;Ukraine:Kyiv|Kiev;"
    "Serbia:Belgrade;Croatia:Zagreb;Slovenia:Ljubljana;Albania:Tirana;Estonia:Tallinn;Latvia:Riga;Lithuania:Vilnius;"
    "Belarus:Minsk;Malta:Valletta;Egypt:Cairo;Morocco:Rabat;Algeria:Algiers;Tunisia:Tunis;Libya:Tripoli;Kenya:Nairobi;"
    "Uganda:Kampala;Rwanda:Kigali;Ghana:Accra;Nigeria:Abuja;Senegal:Dakar;Mali:Bamako;Angola:Luanda;Zambia:Lusaka;"
    "Namibia:Windhoek;Somalia:Mogadishu;Canada:Ottawa;Cuba:Havana;Jamaica:Kingston;Colombia:Bogota|Bogotá;"
    "Venezuela:Caracas;Ecuador:Quito;Peru:Lima;Chile:Santiago;Argentina:Buenos Aires;Uruguay:Montevideo;Japan:Tokyo;"
    "China:Beijing;Mongolia:Ulaanbaatar|Ulan Bator;Vietnam:Hanoi;Thailand:Bangkok;Laos:Vientiane;Philippines:Manila;"
    "Nepal:Kathmandu;Afghanistan:Kabul;Iran:Tehran;Iraq:Baghdad;Syria:Damascus;Lebanon:Beirut;Jordan:Amman;Oman:Muscat;"
    "Qatar:Doha;Australia:Canberra;New Zealand:Wellington;Fiji:Suva;Indonesia:Jakarta;India:New Delhi|Delhi"
)
OPPOSITES: Final = (
    "hot:cold;big:small|little;up:down;fast:slow;happy:sad|unhappy;rich:poor;old:young|new;tall:short;wet:dry;full:empty;"
    "open:closed|close|shut;early:late;strong:weak;hard:soft|easy;loud:quiet|soft;clean:dirty;day:night;love:hate;"
    "win:lose;begin:end|finish;buy:sell;push:pull;always:never;many:few;thick:thin;wide:narrow;deep:shallow;"
    "sharp:dull|blunt;polite:rude|impolite;true:false;success:failure;war:peace;ancient:modern;arrive:depart|leave;"
    "attack:defend|defense;borrow:lend;cheap:expensive;enemy:friend|ally;increase:decrease;entrance:exit;import:export;"
    "forget:remember;innocent:guilty;humble:proud|arrogant;include:exclude;inside:outside;lazy:hardworking|diligent|"
    "active;maximum:minimum;natural:artificial|unnatural;permanent:temporary;positive:negative;public:private;"
    "smooth:rough;simple:complex|complicated;tight:loose;vertical:horizontal;visible:invisible;scarce:abundant|plentiful;"
    "rigid:flexible;reveal:hide|conceal;praise:criticize|blame;ascend:descend;accept:reject|refuse;bright:dark|dim;"
    "north:south;above:below|under;awake:asleep;birth:death;front:back|rear;heavy:light;laugh:cry;left:right;male:female"
)
SPANISH: Final = (
    "house:casa;dog:perro;cat:gato;water:agua;book:libro;tree:árbol|arbol;sun:sol;moon:luna;day:día|dia;night:noche;"
    "milk:leche;bread:pan;cheese:queso;apple:manzana;fish:pescado|pez;meat:carne;egg:huevo;salt:sal;coffee:café|cafe;"
    "red:rojo;blue:azul;green:verde;white:blanco;black:negro;yellow:amarillo;friend:amigo;brother:hermano;"
    "sister:hermana;mother:madre;father:padre;son:hijo;hand:mano;head:cabeza;eye:ojo;heart:corazón|corazon;door:puerta;"
    "window:ventana;table:mesa;chair:silla;bed:cama;street:calle;city:ciudad;country:país|pais;school:escuela;"
    "church:iglesia;king:rey;queen:reina;horse:caballo;cow:vaca;bird:pájaro|pajaro|ave;flower:flor;river:río|rio;"
    "sea:mar;mountain:montaña|montana;fire:fuego;snow:nieve;rain:lluvia;wind:viento;winter:invierno;summer:verano;"
    "one:uno;five:cinco;ten:diez;love:amor;life:vida;death:muerte;money:dinero;work:trabajo;shoe:zapato;shirt:camisa;"
    "knife:cuchillo;spoon:cuchara;mirror:espejo;island:isla;forest:bosque;bridge:puente;key:llave;clock:reloj"
)
PAST: Final = (
    "go:went;eat:ate;drink:drank;write:wrote;sing:sang;swim:swam;run:ran;begin:began;break:broke;speak:spoke;drive:drove;"
    "ride:rode;fly:flew;grow:grew;know:knew;throw:threw;draw:drew;wear:wore;tear:tore;choose:chose;freeze:froze;"
    "steal:stole;take:took;shake:shook;give:gave;see:saw;come:came;find:found;bind:bound;think:thought;buy:bought;"
    "bring:brought;catch:caught;teach:taught;fight:fought;seek:sought;sell:sold;tell:told;hold:held;keep:kept;"
    "sleep:slept;weep:wept;leave:left;feel:felt;meet:met;lead:led;feed:fed;bleed:bled;build:built;send:sent;spend:spent;"
    "lend:lent;lose:lost;shoot:shot;sit:sat;stand:stood;win:won;hang:hung|hanged;stick:stuck;strike:struck;swing:swung;"
    "spin:spun;dig:dug;cling:clung;sting:stung;rise:rose;wake:woke;hide:hid;bite:bit;slide:slid;blow:blew;hear:heard;"
    "say:said;pay:paid;lay:laid;flee:fled;kneel:knelt|kneeled;creep:crept;deal:dealt;mean:meant"
)
PLURALS: Final = (
    "child:children;mouse:mice;foot:feet;tooth:teeth;goose:geese;man:men;woman:women;ox:oxen;leaf:leaves;wolf:wolves;"
    "knife:knives;life:lives;wife:wives;half:halves;shelf:shelves;loaf:loaves;thief:thieves;calf:calves;city:cities;"
    "baby:babies;lady:ladies;story:stories;berry:berries;fly:flies;box:boxes;fox:foxes;bus:buses;dish:dishes;"
    "church:churches;watch:watches;potato:potatoes;tomato:tomatoes;hero:heroes;echo:echoes;sheep:sheep;deer:deer;"
    "cactus:cacti|cactuses;fungus:fungi;nucleus:nuclei;crisis:crises;thesis:theses;analysis:analyses;oasis:oases;"
    "phenomenon:phenomena;criterion:criteria;bacterium:bacteria;appendix:appendices|appendixes;index:indices|indexes;"
    "vertex:vertices|vertexes;person:people|persons;die:dice|dies;elf:elves;scarf:scarves|scarfs;roof:roofs;chief:chiefs;"
    "cliff:cliffs;piano:pianos;photo:photos;day:days;key:keys;monkey:monkeys;toy:toys;glass:glasses;witch:witches;"
    "army:armies;hobby:hobbies;lens:lenses;virus:viruses;axis:axes;medium:media|mediums;stimulus:stimuli;salmon:salmon"
)
CONTINENTS: Final = (
    "France:Europe;Kenya:Africa;Japan:Asia;Brazil:South America;Canada:North America;Egypt:Africa;India:Asia;"
    "Peru:South America;Mexico:North America;Spain:Europe;Nigeria:Africa;China:Asia;Chile:South America;"
    "Cuba:North America;Poland:Europe;Ghana:Africa;Thailand:Asia;Argentina:South America;Panama:North America;"
    "Sweden:Europe;Morocco:Africa;Vietnam:Asia;Colombia:South America;Jamaica:North America;Greece:Europe;Uganda:Africa;"
    "Nepal:Asia;Ecuador:South America;Honduras:North America;Norway:Europe;Zambia:Africa;Iran:Asia;"
    "Bolivia:South America;Haiti:North America;Austria:Europe;Senegal:Africa;Mongolia:Asia;Uruguay:South America;"
    "Guatemala:North America;Hungary:Europe;Mali:Africa;Iraq:Asia;Paraguay:South America;Nicaragua:North America;"
    "Belgium:Europe;Angola:Africa;Pakistan:Asia;Venezuela:South America;Portugal:Europe;Tunisia:Africa;Laos:Asia;"
    "Denmark:Europe;Somalia:Africa;Yemen:Asia;Ireland:Europe;Chad:Africa;Syria:Asia;Croatia:Europe;Sudan:Africa;"
    "Malaysia:Asia;Finland:Europe;Libya:Africa;Jordan:Asia;Serbia:Europe;Niger:Africa;Qatar:Asia;Estonia:Europe;"
    "Rwanda:Africa;Oman:Asia;Malta:Europe;Benin:Africa;Bhutan:Asia;Togo:Africa;Suriname:South America;Belize:North America"
)
COLOURS: Final = (
    "grass:green;snow:white;blood:red;coal:black;the sky:blue;a banana:yellow;an orange:orange;a carrot:orange;"
    "a lemon:yellow;milk:white;a tomato:red;chocolate:brown;a strawberry:red;a flamingo:pink;an emerald:green;a ruby:red;"
    "a sapphire:blue;gold:gold|golden|yellow;silver:silver|gray|grey;an eggplant:purple;a raven:black;a swan:white;"
    "broccoli:green;a cherry:red;a lime:green;salt:white;a sunflower:yellow;the ocean:blue;cucumber:green;spinach:green;"
    "a polar bear:white;a pumpkin:orange;a plum:purple;sugar:white;a panther:black;rice:white;corn:yellow;mud:brown;"
    "a fire truck:red;a stop sign:red;a school bus:yellow;lavender:purple;mustard:yellow;ketchup:red;cotton:white;"
    "ivory:white;a frog:green;a canary:yellow;honey:yellow|golden|amber|gold;ash:gray|grey;an elephant:gray|grey;"
    "a rose:red;a pea:green;a crow:black;a pig:pink;a dolphin:gray|grey;jade:green;turmeric:yellow;charcoal:black;"
    "a blueberry:blue;a lobster:red;lettuce:green;a violet:purple|violet;peanut butter:brown;a peach:orange|pink;ink:black"
)
FACTS: Final = (
    "Who wrote Hamlet?:Shakespeare;Who wrote Emma?:Austen;Who wrote Animal Farm?:Orwell;Who wrote Anna Karenina?:Tolstoy;"
    "Who wrote Don Quixote?:Cervantes;Who wrote The Iliad?:Homer;Who wrote Dracula?:Stoker;Who wrote Oliver Twist?:"
    "Dickens;Who wrote Ulysses?:Joyce;Who wrote Crime and Punishment?:Dostoevsky|Dostoyevsky;Who painted the Mona Lisa?:"
    "Leonardo|da Vinci;Who painted Guernica?:Picasso;Who painted The Starry Night?:Gogh;Who painted Water Lilies?:Monet;"
    "Who composed The Four Seasons?:Vivaldi;Who composed the Moonlight Sonata?:Beethoven;Who composed Swan Lake?:"
    "Tchaikovsky;Who composed The Magic Flute?:Mozart;Who discovered penicillin?:Fleming;Who discovered gravity after an "
    "apple fell?:Newton;Who formulated the theory of relativity?:Einstein;Who proposed evolution by natural selection?:"
    "Darwin|Wallace;Who invented the telephone?:Bell;Who invented the light bulb?:Edison|Swan;Who first walked on the "
    "Moon?:Armstrong;Who was the first president of the United States?:Washington;What is the chemical symbol of gold?:Au;"
    "What is the chemical symbol of iron?:Fe;What is the chemical symbol of sodium?:Na;What is the chemical symbol of "
    "silver?:Ag;What is the chemical symbol of lead?:Pb;What is the chemical symbol of oxygen?:O;What is the chemical "
    "formula of water?:H2O|H₂O;What is the largest planet of the solar system?:Jupiter;Which planet is closest to the Sun?:"
    "Mercury;Which planet is called the Red Planet?:Mars;Which planet has the brightest rings?:Saturn;How many continents "
    "are there?:7|seven;How many legs does a spider have?:8|eight;How many legs does an ant have?:6|six;How many sides "
    "does a hexagon have?:6|six;How many sides does a pentagon have?:5|five;How many minutes are in an hour?:60|sixty;"
    "How many days are in a leap year?:366;How many bones does an adult human have?:206;How many strings does a violin "
    "have?:4|four;How many players are in a football team on the field?:11|eleven;What is the longest river in Africa?:"
    "Nile;What is the highest mountain on Earth?:Everest;What is the largest ocean?:Pacific;What is the largest hot desert?:"
    "Sahara;In which country is Machu Picchu?:Peru;In which country is the Taj Mahal?:India;In which city is the Eiffel "
    "Tower?:Paris;In which city is Big Ben?:London;In which city is the Colosseum?:Rome;What is the currency of Japan?:yen;"
    "What is the currency of India?:rupee;What is the currency of Mexico?:peso;What is the currency of the United "
    "Kingdom?:pound;What is the square root of 81?:9|nine;At how many degrees Celsius does water boil?:100;In which year "
    "did the Second World War end?:1945;In which year did the First World War begin?:1914;In which year did the Berlin "
    "Wall fall?:1989;In which year did humans first land on the Moon?:1969;Which gas do plants take in?:carbon dioxide|CO2;"
    "Which gas is most of Earth's atmosphere?:nitrogen;What is the hardest natural material?:diamond;Which organ pumps "
    "blood?:heart;What is the largest organ of the human body?:skin;What do bees make?:honey;What is frozen water called?:"
    "ice;Which animal is the largest on Earth?:whale;Which animal is the tallest?:giraffe;Which language do people use in "
    "Brazil?:Portuguese;What is the largest country by area?:Russia"
)
STATEMENTS: Final = (
    "The Earth orbits the Sun:true;The Moon is larger than the Earth:false;Water freezes at 0 degrees Celsius:true;"
    "Spiders are insects:false;Whales are mammals:true;The Great Wall is in Japan:false;Sydney is the capital of "
    "Australia:false;Bats are birds:false;Penguins can fly:false;Diamonds are made of carbon:true;Sound is faster than "
    "light:false;The Amazon is in Africa:false;Humans have two lungs:true;A triangle has four sides:false;7 is a prime "
    "number:true;9 is a prime number:false;Shakespeare wrote Hamlet:true;Everest is the highest mountain:true;The "
    "Pacific is the smallest ocean:false;Ice sinks in water:false;The Sun is a star:true;Jupiter is smaller than Mars:"
    "false;A year has 12 months:true;A week has eight days:false;Canada is south of the United States:false;Berlin is in "
    "Germany:true;The heart pumps blood:true;Plants need light:true;Snakes have legs:false;An octopus has eight arms:true;"
    "Fish breathe with gills:true;Venus is a moon:false;Madrid is in Italy:false;Salt dissolves in water:true;Gold is a "
    "gas:false;Bees make honey:true;The liver is a bone:false;Paper is made from wood:true;Cairo is in Egypt:true;Lions "
    "eat grass only:false;Iron rusts:true;Oxygen is a metal:false;100 is greater than 99:true;2 plus 2 is 5:false;Rome is "
    "in Italy:true;Elephants lay eggs:false;Chickens lay eggs:true;The Nile is in Africa:true;Steel is softer than butter:"
    "false;A square has equal sides:true;Mozart was a composer:true;Picasso was a painter:true;Napoleon was Chinese:false;"
    "London is in England:true;The Sahara is a desert:true;Tokyo is in China:false;An hour has 60 minutes:true;A century "
    "has 10 years:false;Cats have whiskers:true;Frogs are mammals:false;Milk is black:false;Fire is cold:false;Sharks are "
    "fish:true;Horses have four legs:true;The Moon gives its own light:false;Glass is made from sand:true;Rain falls from "
    "clouds:true;Mercury is the largest planet:false;Brazil is in South America:true;Penguins live at the North Pole:false"
)
WORDS: Final = [
    "apple",
    "river",
    "stone",
    "window",
    "garden",
    "paper",
    "silver",
    "yellow",
    "mountain",
    "bottle",
    "candle",
    "market",
    "forest",
    "winter",
    "summer",
    "letter",
    "bridge",
    "ladder",
    "pencil",
    "orange",
    "rabbit",
    "guitar",
    "kitchen",
    "school",
    "doctor",
    "farmer",
    "engine",
    "basket",
    "pepper",
    "tunnel",
    "island",
    "castle",
    "dragon",
    "planet",
    "rocket",
    "mirror",
    "flower",
    "butter",
    "camera",
    "hammer",
    "violin",
    "ticket",
    "wallet",
    "saddle",
    "blanket",
    "turtle",
    "pirate",
    "puzzle",
    "canyon",
    "harbor",
    "meadow",
    "parrot",
    "walnut",
    "copper",
    "velvet",
    "marble",
    "lemon",
    "tiger",
    "zebra",
    "anchor",
    "barrel",
    "cotton",
    "desert",
    "feather",
    "glacier",
]
NAMES: Final = [
    "Adam",
    "Beth",
    "Cora",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Karen",
    "Louis",
    "Mary",
    "Nora",
    "Oscar",
    "Peter",
    "Ruth",
    "Simon",
]
TOWNS: Final = [
    "Rome",
    "Oslo",
    "Lima",
    "Cairo",
    "Paris",
    "Tokyo",
    "Berlin",
    "Madrid",
    "Dublin",
    "Vienna",
    "Athens",
    "Warsaw",
    "Boston",
    "Geneva",
]
JOBS: Final = ["teacher", "doctor", "farmer", "pilot", "nurse", "lawyer", "baker", "plumber", "painter", "waiter"]


def pairs(text: str) -> list[tuple[str, str]]:
    """Question and accepted answers of each fact."""
    found = [one.rpartition(":") for one in text.split(";")]
    return [(question, answers) for question, _, answers in found]
