"""Synonyms of the 80 COCO classes as LVIS v1 lists them (the LVIS category of each class's WordNet synset).

Written as LVIS writes them: underscores for spaces, a remark in brackets. `caption_tags` reads them.
"""

from __future__ import annotations

_TABLE = """
person: person baby child boy girl man woman human|bicycle: bicycle bike_(bicycle)
car: car_(automobile) auto_(automobile) automobile|motorcycle: motorcycle|airplane: airplane aeroplane
bus: bus_(vehicle) autobus charabanc double-decker motorbus motorcoach|train: train_(railroad_vehicle) railroad_train
truck: truck|boat: boat ship_(boat)|traffic light: traffic_light|fire hydrant: fireplug fire_hydrant hydrant
stop sign: stop_sign|parking meter: parking_meter|bench: bench|bird: bird|cat: cat|dog: dog|horse: horse|sheep: sheep
cow: cow|elephant: elephant|bear: bear|zebra: zebra|giraffe: giraffe
backpack: backpack knapsack packsack rucksack haversack|umbrella: umbrella|handbag: handbag purse pocketbook
tie: necktie tie_(necktie)|suitcase: suitcase baggage luggage|frisbee: frisbee|skis: ski|snowboard: snowboard
sports ball: ball|kite: kite|baseball bat: baseball_bat|baseball glove: baseball_glove baseball_mitt
skateboard: skateboard|surfboard: surfboard|tennis racket: tennis_racket|bottle: bottle|wine glass: wineglass
cup: cup|fork: fork|knife: knife|spoon: spoon|bowl: bowl|banana: banana|apple: apple|sandwich: sandwich
orange: orange_(fruit)|broccoli: broccoli|carrot: carrot|hot dog: sausage|pizza: pizza|donut: doughnut donut
cake: cake|chair: chair|couch: sofa couch lounge|potted plant: flowerpot|bed: bed|dining table: dining_table
toilet: toilet|tv: television_set tv tv_set|laptop: laptop_computer notebook_computer
mouse: mouse_(computer_equipment) computer_mouse|remote: remote_control
keyboard: computer_keyboard keyboard_(computer)
cell phone: cellular_telephone cellular_phone cellphone mobile_phone smart_phone|microwave: microwave_oven|oven: oven
toaster: toaster|sink: sink|refrigerator: refrigerator|book: book|clock: clock timepiece timekeeper|vase: vase
scissors: scissors|teddy bear: teddy_bear|hair drier: hair_dryer|toothbrush: toothbrush
"""

COCO_SYNONYMS: dict[str, tuple[str, ...]] = {
    name: tuple(synonyms.split(" "))
    for line in _TABLE.strip().splitlines()
    for name, synonyms in (entry.split(": ") for entry in line.split("|"))
}
"""COCO class name → its LVIS synonyms."""


def lvis_synonyms(name: str) -> tuple[str, ...]:
    """The LVIS synonyms of a class that is called like one of COCO, in whatever capitals; none for another name."""
    return COCO_SYNONYMS.get(name.replace("_", " ").strip().lower(), ())
