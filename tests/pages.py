"""A page as a browser takes it, and names that strangers chose."""

from html.parser import HTMLParser

HOSTILE = [
    '<script>alert("x")</script>',
    "a\"b'c onload=alert(1).avi",
    "../..;rm -rf & #!$\\frac{x$ 走.mp4",
    "<img src=http://evil.example/x.png>",
    "broken\udcff\x07name",
    "</td></table>{{ 7*7 }}",
]


class Page(HTMLParser):
    """Collects tags, addresses and text of a page, as a browser would take them."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.addresses, self.attributes, self.text = [], [], [], ""
        self.loose_tables, self._divs = 0, []  # tables that no scrolling container holds; classes of the open divs
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "div":
            self._divs.append((dict(attrs).get("class") or "").split())
        self.loose_tables += tag == "table" and not any("wide" in classes for classes in self._divs)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_endtag(self, tag):
        if tag == "div":
            self._divs.pop()

    def handle_data(self, data):
        self.text += data
