"""Words that the general rules of `words.py` would cut elsewhere: contractions, abbreviations, emoticons.

Policy: the list is spaCy 3.8's for English (MIT licence), without the entries that change nothing, because
published thresholds were chosen on words cut like that; `tests/oracle` compares it with that list, entry by
entry. An apostrophe is also read as ’. Rejected: cutting at every apostrophe (don't → don + ' + t)."""

from collections.abc import Iterator

_ABBREVIATIONS = """
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul.
Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct.
Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G.
Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen.
St. vs. v.s. ä. ö. ü. a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z."""
_WHOLE = r"""
'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock 'd
'em 'll 'nuff lovin' Lovin' havin' Havin' doin' Doin' goin' Goin' nothin' Nothin' nuthin' Nuthin' ol' Ol'
somethin' Somethin' \t \n — ' \") <space> '' C++"""
_EMOTICONS = r"""
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-(
:(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o
:0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^
>.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3
<33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"""
# Stems, and what may follow them; a bar separates the words of the ending.
_CONTRACTIONS = (
    ("i", "'m m 'm|a m|a"),
    ("i you he she it we they", "'ll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve"),
    ("who what when where why how there that this these those", "'ll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve"),
    ("i you we they", "'ve ve"),
    ("you we they", "'re re"),
    ("he she it", "'s s"),
    ("who what when where why how there that this", "'s s"),
    ("who what when where why how there these those", "'re re 've ve"),
    ("ca could do does did had may might must need ought sha should wo would", "n't nt n't|'ve nt|ve"),
    ("could might must should would", "'ve ve"),
    ("ai are is was were have has dare", "n't nt"),
    ("how", "'d|'y"),
    ("not", "'ve ve"),
    ("can", "not"),
    ("gon", "na"),
    ("got", "ta"),
    ("let", "'s"),
    ("c'm", "on"),
)
_NOT_CUT = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"


def special_words() -> dict[str, tuple[str, ...]]:
    """Each special spelling and the words it is cut into."""
    listed = {"".join(words): words for words in _listed()}
    curly = {
        key.replace("'", "’"): tuple(word.replace("'", "’") for word in words)
        for key, words in listed.items()
    }
    return {key: words for key, words in {**curly, **listed}.items() if key not in _NOT_CUT.split()}


def _listed() -> Iterator[tuple[str, ...]]:
    for stems, endings in _CONTRACTIONS:
        for stem in stems.split():
            for ending in endings.split():
                yield (stem, *ending.split("|"))
                yield (stem[0].upper() + stem[1:], *ending.split("|"))
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            yield str(hour), half
    for unit in "cfkCFK":
        yield "°", unit, "."
    yield "y'", "all"
    yield "y", "all"
    for whole in (_ABBREVIATIONS + _WHOLE + _EMOTICONS).split():
        yield (whole,)
