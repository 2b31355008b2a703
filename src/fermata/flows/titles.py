"""Names for sessions that were given none: a city, unlike every other title of the account."""

import secrets

from fermata.kit.database import Connection
from fermata.sessions import store

CITIES: tuple[str, ...] = tuple(
    name.strip()
    for name in """
    Aarhus, Accra, Addis Ababa, Adelaide, Agra, Ahmedabad, Alexandria, Algiers, Almaty, Amman, Amsterdam,
    Ankara, Antwerp, Arequipa, Asuncion, Athens, Auckland, Austin, Baku, Baltimore, Bangkok, Barcelona, Basel,
    Beirut, Belfast, Belgrade, Bergen, Berlin, Bilbao, Bogota, Bologna, Bordeaux, Boston, Brasilia, Bremen,
    Brisbane, Bristol, Brussels, Bucharest, Budapest, Busan, Cairo, Calgary, Cape Town, Caracas, Cardiff,
    Casablanca, Chennai, Chicago, Cologne, Colombo, Copenhagen, Cork, Cusco, Dakar, Dallas, Damascus, Delhi,
    Denver, Detroit, Dhaka, Doha, Dresden, Dublin, Durban, Edinburgh, Florence, Fukuoka, Galway, Gdansk,
    Geneva, Genoa, Ghent, Glasgow, Gothenburg, Granada, Graz, Hamburg, Hanoi, Havana, Helsinki, Hiroshima,
    Hobart, Houston, Istanbul, Jaipur, Jakarta, Kampala, Karachi, Kathmandu, Kigali, Kingston, Krakow, Kyoto,
    Lagos, Lahore, La Paz, Leipzig, Lille, Lima, Lisbon, Liverpool, Ljubljana, London, Luanda, Lusaka, Lyon,
    Madrid, Malaga, Manila, Marrakesh, Marseille, Medellin, Melbourne, Memphis, Miami, Milan, Minsk, Mombasa,
    Montevideo, Montreal, Mumbai, Munich, Nagoya, Nairobi, Nantes, Naples, Nashville, Nice, Osaka, Oslo,
    Ottawa, Oxford, Palermo, Panama City, Paris, Perth, Porto, Prague, Quebec, Quito, Reykjavik, Riga, Rome,
    Rotterdam, Salzburg, Santiago, Sapporo, Sarajevo, Seattle, Seoul, Seville, Singapore, Sofia, Stockholm,
    Sydney, Taipei, Tallinn, Tampere, Tbilisi, Tokyo, Toronto, Trieste, Tunis, Turin, Uppsala, Utrecht,
    Valencia, Valparaiso, Vancouver, Venice, Vienna, Vilnius, Warsaw, Wellington, York, Zagreb, Zurich
    """.replace("\n", " ").split(",")
)

_taken = store.taken_among(CITIES)


def choose_title(connection: Connection, account_id: str) -> str:
    """A free city; once all are taken, a city and the next number. Three lookups or so, however many sessions
    the account has."""
    city = secrets.choice(CITIES)
    if not store.is_title_taken(connection, account_id, city):
        return city
    numbered = store.count_titles_after(connection, account_id, city)
    if numbered == 0:  # perhaps not all are taken yet
        taken = _taken(connection, account_id)
        free = [name for name in CITIES if name.casefold() not in taken]
        if free:
            return secrets.choice(free)
    number = numbered + 2
    while store.is_title_taken(connection, account_id, f"{city} {number}"):
        number += 1
    return f"{city} {number}"
