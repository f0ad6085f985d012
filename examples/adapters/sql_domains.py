"""What the databases of the SQL task are about: tables, columns, and the values in them.

Invariant: no table, column (other than keys and names) or value is in both splits. Knows nothing of
SQL.
"""

from __future__ import annotations

from dataclasses import dataclass

from branchline.examples.adapters.words import Split


@dataclass(frozen=True)
class Category:
    """A column with a closed set of texts."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """A column of whole numbers between two bounds."""

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class Domain:
    """One table.

    Attributes:
        table: its name; `plural` is what questions call its rows.
        label: the column that names a row.
        people: rows are named like people; else like things.
    """

    table: str
    plural: str
    label: str
    people: bool
    categories: tuple[Category, ...]
    measures: tuple[Measure, ...]


def _read(text: str) -> tuple[Domain, ...]:
    """Three lines each: `table plural label [people]`; `category=a,b | …`; `measure=low..high | …`.

    An underscore in a value stands for a space.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    return tuple(map(_read_one, lines[::3], lines[1::3], lines[2::3]))


def _read_one(head: str, left: str, right: str) -> Domain:
    table, plural, label, *people = head.split()
    categories = []
    for name, _, values in (part.partition("=") for part in left.split(" | ")):
        categories.append(Category(name, tuple(values.replace("_", " ").split(","))))
    measures = []
    for name, _, bounds in (part.partition("=") for part in right.split(" | ")):
        low, _, high = bounds.partition("..")
        measures.append(Measure(name, int(low), int(high)))
    return Domain(table, plural, label, bool(people), tuple(categories), tuple(measures))


_TRAIN = """
book books title
  genre=Crime,Poetry,Travel,History | language=Latin,Dutch,Greek,Czech
  pages=60..900 | price=5..90 | year=1900..2020
employee employees name people
  department=Sales,Legal,Research,Support | office=North,South,East,West
  salary=2000..9000 | age=18..66 | years_of_service=0..45
film films title
  style=Drama,Comedy,Horror,Western | country=Spain,Japan,Brazil,Norway
  duration=60..240 | budget=10..900 | votes=100..9000
flight flights code
  airline=Kestrel,Volare,Nordair,Sunjet | status=boarding,delayed,landed,cancelled
  distance=90..9000 | passengers=10..400 | fuel=500..9000
student students name people
  faculty=Medicine,Law,Physics,Arts | degree=bachelor,master,doctorate
  credits=0..240 | semester=1..60 | grade=1..100
recipe recipes title
  cuisine=Thai,French,Mexican,Indian | difficulty=easy,medium,hard
  calories=80..1500 | minutes=5..240 | servings=1..60
house houses name
  district=Oldtown,Harbour,Hillside,Meadow | heating=gas,wood,solar
  rooms=1..50 | area=30..600 | rent=300..5000
player players name people
  team=Hawks,Wolves,Comets,Giants | position=goalkeeper,defender,striker
  goals=0..90 | matches=1..300 | height=150..215
car cars model
  fuel_type=diesel,petrol,hybrid | color=red,blue,white,black
  power=40..600 | mileage=0..9000 | doors=1..50
hotel hotels name
  chain=Astoria,Bellevue,Mirador,Regent | view=sea,park,street
  beds=4..500 | stars=1..60 | floors=1..70
song songs title
  mood=calm,happy,sad,wild | label_name=Redsun,Mosaic,Owlhouse
  plays=100..9000 | tempo=50..210 | seconds=60..600
doctor doctors name people
  specialty=surgery,cardiology,pediatrics | shift=morning,evening,night
  patients=0..500 | fee=40..600 | experience=0..50
ship ships name
  flag=Malta,Panama,Greece,Iceland | cargo=grain,coal,timber,oil
  tonnage=100..9000 | crew=3..300 | length=20..400
tree trees name
  species=oak,birch,maple,cedar | soil=sand,clay,chalk
  tree_age=1..500 | trunk_width=5..300 | leaves=100..9000
course courses title
  subject=biology,music,algebra,geography | level=beginner,advanced,expert
  lessons=1..80 | hours=2..200 | tuition=50..2000
museum museums name
  theme=art,science,history,nature | owner=city,state,private
  visitors=100..9000 | exhibits=10..900 | opened=1800..2020
machine machines code
  maker=Orbis,Tekla,Ferrum | location=hall_A,hall_B,yard
  weight=20..900 | output=10..1000 | repairs=0..60
farmer farmers name people
  crop=wheat,barley,potato,corn | region=valley,coast,plain
  acres=2..900 | cows=0..300 | harvest=10..1000
ticket tickets code
  zone=inner,outer,airport | class=first,second,third
  cost=2..300 | trips=1..90 | valid_days=1..365
phone phones model
  brand=Lumo,Zentra,Pikon | system=Orion,Vega
  storage=16..1024 | battery=1000..6000 | screen=40..80
bridge bridges name
  material=steel,stone,concrete,wood | river=Elbe,Loire,Tagus,Thames
  span=20..2000 | lanes=1..50 | traffic=100..9000
writer writers name people
  nation=Italian,Polish,Turkish,Swedish | field=novels,essays,plays
  prizes=0..60 | works=1..120 | birth_year=1850..1990
restaurant restaurants name
  food=pizza,sushi,tapas,curry | quarter=Riverside,Station,Market
  tables=4..80 | rating=1..100 | guests=10..900
planet planets name
  surface=rock,ice,gas | discovered_by=Halm,Kiosk,Ortega
  moons=0..80 | radius=100..9000 | orbit_days=10..9000
dog dogs name
  breed=collie,poodle,terrier,beagle | coat=short,long,curly
  dog_weight=2..90 | puppies=0..50 | walks=0..60
purchase purchases code
  shop=Alder,Birch_Lane,Citadel | payment=cash,card,invoice
  total=5..2000 | items=1..90 | discount=0..70
game games title
  platform=console,handheld,desktop | publisher=Pixelworks,Ludora,Hexa
  players=1..60 | levels=1..150 | sold=100..9000
bank banks name
  seat=Zurich,London,Vienna | type=savings,trade,central
  branches=1..400 | assets=50..9000 | founded=1600..2020
school schools name
  town=Lindau,Aston,Prato,Solna | kind=primary,secondary,evening
  pupils=50..2000 | classes=4..90 | teachers=3..200
lake lakes name
  state=Vermont,Kent,Tyrol,Skane | water=fresh,salt
  depth=2..500 | islands=0..60 | shore_length=5..900
printer printers model
  technology=laser,inkjet,thermal | floor=ground,upper,cellar
  speed=5..150 | pages_printed=10..9000 | noise=20..90
actor actors name people
  agency=Spotlight,Limelight,Curtain | training=academy,theatre,none
  roles=1..150 | awards=0..70 | income=10..900
wine wines name
  grape=Merlot,Riesling,Malbec,Syrah | sweetness=dry,sweet,medium_dry
  vintage=1950..2022 | bottles=10..900 | alcohol=5..60
train trains code
  operator=Railnet,Swiftline,Blueway | gauge=narrow,standard,broad
  wagons=1..60 | top_speed=60..350 | stops=1..70
plant plants name
  light=shade,sun,half_shade | family=fern,lily,rose,cactus
  plant_height=1..400 | water_need=1..90 | buds=0..200
nurse nurses name people
  ward=A1,B2,C3 | contract=full,part,temporary
  night_shifts=0..90 | overtime=0..200 | wage=1500..6000
"""
_HELD_OUT = """
castle castles name
  dynasty=Valois,Tudor,Habsburg,Bourbon | condition=ruined,restored,inhabited
  towers=1..60 | wall_thickness=1..90 | built=900..1700
astronaut astronauts name people
  mission=Aurora,Pioneer,Zenith | rank=pilot,commander,specialist
  spacewalks=0..60 | days_in_orbit=5..800 | experiments=0..120
cheese cheeses name
  milk=goat,sheep,buffalo | texture=soft,firm,crumbly
  fat=5..80 | ripening_weeks=1..120 | kilos=10..900
volcano volcanoes name
  continent=Asia,Europe,Africa,Oceania | activity=dormant,active,extinct
  elevation=200..7000 | eruptions=0..150 | crater_width=50..3000
violinist violinists name people
  orchestra=Philharmonia,Camerata,Sinfonia | nationality=Danish,Irish,Korean,Chilean
  concerts=5..900 | recordings=0..80 | ticket_sales=100..9000
warehouse warehouses code
  climate=cooled,heated,frozen | security=guarded,alarmed,open
  shelves=20..900 | forklifts=1..60 | square_meters=200..9000
bakery bakeries name
  specialty_bread=rye,sourdough,ciabatta | suburb=Millbrook,Fernley,Ashgrove
  ovens=1..50 | loaves=50..3000 | rolls=50..5000
satellite satellites code
  purpose=weather,navigation,mapping | agency_name=Celesta,Skyward,Polaris
  altitude=200..9000 | antennas=1..60 | launch_year=1960..2024
horse horses name
  stable=Greenfield,Stonegate,Willow | discipline=dressage,jumping,racing
  victories=0..90 | stride=100..800 | starts=1..200
newspaper newspapers name
  frequency=daily,weekly,monthly | editor_city=Oslo,Lima,Quito
  circulation=100..9000 | journalists=2..300 | columns=2..60
"""
DOMAINS: dict[Split, tuple[Domain, ...]] = {
    "train": _read(_TRAIN),
    "held_out": _read(_HELD_OUT),
}
