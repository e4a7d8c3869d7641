"""Office files and PDFs that tests write by hand, so that what is in them is known and no program is needed."""

from __future__ import annotations

import base64
import zipfile
import zlib
from pathlib import Path

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
M = "http://schemas.openxmlformats.org/officeDocument/2006/math"
A = "http://schemas.openxmlformats.org/drawingml/2006/main"
P = "http://schemas.openxmlformats.org/presentationml/2006/main"
S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"

# "Water damage is not covered.", encrypted with AES-256: one needs no password to be opened, the other does.
_WITHOUT_PASSWORD = (
    "c-oCrJ&0UY6vlMkG!_;X7FTewO5Q#9|Kc!^-JQX|u)~g~5sUkC?(WF$y!Fl7C2JE%vyEtJAtH)sF9bp$se_Gzq*4gP!U$HWQ+VIZWHT@pzW0iI&-"
    "u>Z_r7~KM%%+na9NOzM}PkE8v)8_9X=+#9;x0xJwjS-`PLuQd!!oqJ)BWq0K25$Cpb+Vkgo;Iain^8l4kTnDmpy<h*Vqk@wBC|5-R>Pv@6tLfi5a"
    "lS20ceW_`WnV&&Dqsd0RfaoQH(jLHRa7iaZx6HAj_#$oX;7C_arrWfC`zFevQ9!~e#eQH_fpS2D8Lt=jV{@#dva@#+B_|MrN_rKbI@WPYP>C@Nlz"
    "V6R{KH0<<UwZj-{pIDy-@MwtMIL>(_50sneEr!Q7f-*v(?0p@*Eb*6uUz=?CY(LEaq`X>A71*QtGi6S>_DwC&~;6!@o{M9+s+82+VnG=&r`jH2Pf"
    "E0qF<RquVlGKRUv}v^NF}B>k*aQNv92Wybv-uXtANyxb@TIn?$M|+EXl93}CX2l39@fvqRu434rKjM45tOnmfk8fn$;hnUl!b8<&Gf0hDkqcqbDo"
    "BZLS>`N+UHA5nzdC)EeEXB~29lD5jSAOmVCnB^9%G^iAd0R%HnWn+cQ4vHg#mde=#F~x+aGRwfSP$~f=<Cp@eGqVNk1@cm5YdHVw<2Ef<SB~5L!A"
    "Ym6YP*g*M>y?3S7~)+Fuo?vi4uINjuLt}q>BXIrg^^E8PJ}|A_tR=4q2F-8Mmr5oE0h?3csvS6@(35OJlXPC=^C66cmRQUP4DiNfT8!n}b+*j|jQ"
    "2s+CV#W$UCw%{=3pMFU)DuDx>_Le^1c&8_vSn{<TDVbQt|k!hCE#>@)YF&d#Qc!*NzlFqD3{(6I%Flq=pf2dYUD4OZH4T>!1p6PR&mTR`s*_w?jS"
    "hEScZj-CHw(*k#Z07nMPd>%cUbS1-<+50u>$kVd+3$IonC~>|3i%*(6j2E;LUKwJT|)o=K+3H#n8xPxsHOVZoiJ;C)6R*3GAG&C80-wmzu|mm(E"
)
_WITH_PASSWORD = (
    "c-oCr&5K+`5Wi}JdeMt`Xb<Z};_L4Z873sVGZ=K)Wyb_TJoHEP?#S-U@}_r_coC1zNzj9mKOo@Wpm+`l9ukZYFNrrV3W8UyH#6A`j0fL)hwAEI{i"
    "^EM^?GZ6XLyOfCCS#4-+sDJIAwGiKPJ5%Y2Lqm3bfe{H5^Y5NwXggVMYZ44oJUGV3Iqa*a%qQNb~ME&*+C#c6j;`X||_llS=tosQk~+E>Q~zU1n-"
    "_A&<k==`G}9_!=&#^<v35sR*1=wL~7kY<kuvEV5%9;_lMmR6i|x`K|J+wfyhF<ggx5$GZJlZ6TbHFK?bdy#MLT^v%2B?Ya8y*FT2e-hBSA$BzzPy"
    "8Qi<KQ9li%^w{-y!ZP9asBf<|IEMHedX~F{TFI|<Es~cJpJHx^2LL@U%xj0Ti$u@)nD%YJe+^l<y}#)D$pAWbXAjPbQbGk**Q6Bu7(*b`f1*Q<8!"
    "Fv6xRAMYb-aYMj@!V=tyX^_o)(Id1HkaD9HG@LQ9)b4U-(&OqxB~3o)f)Ot#TxFggUuU9!4Z?lgG8rB^KYkV+^S7s6SllPU?oX=bA4T!2hmn~*~;"
    "B^l$aWZ60%3KFM2X|B^AD=wuBjN6h}j4m7HRJ4}I;JEjh#~ci^Iu{;AU{OXJonSo4EDIQAox{3pFiFeoIRnA8wchd^nD?d2vOQd!`l#lWb>*xc4b"
    "HoXYIde+?-V8-XqPru2BRDDLMSO#(}AHUL%JmB7VWde-hlQ}^e#dOrnu;MEEckgSSS{hqs}=<my0Y8GN5=Rh|Ho$AkfY#_=ONi!(H)SgAGzB03#&"
    "EVHdt=8x{ECBV>c>M8#0t=%aNi*$A=t9FuoQvk&bF&U(zzYHUAo&P-9BWyb^;D0%>eXRto<w^}HKQA^mxLygu_(?TzN9LI98GkNASYQx8c-0%s_H"
    "+<OFhEJ{IY8%GK&@Se8H2wszyyjp!#mi#(Utin7f4>Kb%dCBnQj~xLVxolz)(Qv)&)@a`4+L+G!6db}Pb)P~?}S+mZCwb%u}`wKHP{=He*s$cZ)5"
)


def encrypted_pdf(path: Path, password: bool) -> Path:
    path.write_bytes(zlib.decompress(base64.b85decode(_WITH_PASSWORD if password else _WITHOUT_PASSWORD)))
    return path


def write_pdf(path: Path, *sheets: str, annotations: str = "", form: str = "") -> Path:
    """A PDF with these content streams, one per sheet, with the font /F1 and the image /I1. `annotations` are objects
    of the first sheet, each on one line, and `form` their numbers."""
    notes = annotations.splitlines()
    first = 5 + 2 * len(sheets)
    listed = " ".join(f"{first + n} 0 R" for n in range(len(notes)))
    kids = " ".join(f"{5 + 2 * n} 0 R" for n in range(len(sheets)))
    acro = f"/AcroForm << /Fields [{listed}] /DR << >> >>" if notes else ""
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {acro} >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(sheets)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>"
        "\nstream\n0\nendstream",
    ]
    for n, content in enumerate(sheets):
        added = f"/Annots [{listed}]" if notes and n == 0 else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {6 + 2 * n} 0 R {added} "
            "/Resources << /Font << /F1 3 0 R >> /XObject << /I1 4 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    objects += notes
    written, offsets = "%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(written)}\n%%EOF\n"
    written += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}"
    path.write_bytes(written.encode("cp1252"))
    return path


def line(x: int, y: int, text: str) -> str:
    """A line of text in the content of a sheet."""
    return f"BT /F1 10 Tf {x} {y} Td ({text}) Tj ET"


def lines(*texts: str, x: int = 72, top: int = 720) -> str:
    return "\n".join(line(x, top - 12 * n, text) for n, text in enumerate(texts))


SCAN = "q 600 0 0 780 0 0 cm /I1 Do Q"  # an image that covers the sheet


def write_parts(path: Path, kind: str, parts: dict[str, str], **relations: str) -> Path:
    """An Office file: its parts, and for each (`word_document`) the relations, each "id type target" on a line."""
    main = next(iter(parts))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_rels/.rels", _relations(f"r1 officeDocument {main}"))
        types = "http://schemas.openxmlformats.org/package/2006/content-types"
        override = (
            f'<Override PartName="/{main}" ContentType="application/vnd.openxmlformats-officedocument.{kind}+xml"/>'
        )
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{types}">{override}</Types>')
        for name, text in parts.items():
            archive.writestr(name, text)
        for name, text in relations.items():
            folder, file = name.rsplit("__", 1)
            archive.writestr(f"{folder.replace('__', '/')}/_rels/{file}.xml.rels", _relations(text))
    return path


def _relations(text: str) -> str:
    made = "".join(
        f'<Relationship Id="{one}" Type="{R}/{kind}" Target="{target}"/>'
        for one, kind, target in (row.split() for row in text.splitlines())
    )
    return f'<Relationships xmlns="{RELATIONS}">{made}</Relationships>'


def write_docx(path: Path, body: str, **others: str) -> Path:
    """A Word file; `others` are more parts in word/, such as `header1`."""
    document = f'<w:document xmlns:w="{W}" xmlns:m="{M}" xmlns:r="{R}"><w:body>{body}</w:body></w:document>'
    parts = {f"word/{name}.xml": f'<w:hdr xmlns:w="{W}" xmlns:m="{M}">{text}</w:hdr>' for name, text in others.items()}
    return write_parts(path, "wordprocessingml.document.main", {"word/document.xml": document, **parts})


def paragraph(*runs: str) -> str:
    return f"<w:p>{''.join(runs)}</w:p>"


def run(text: str, properties: str = "") -> str:
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def word_table(*rows: tuple[str, ...]) -> str:
    """A table; a cell "3*text" covers three columns, "^" goes on from above, "v text" begins such a cell."""
    made = ""
    for row in rows:
        made += "<w:tr>"
        for cell in row:
            span, _, text = cell.rpartition("*")
            properties = f'<w:gridSpan w:val="{span}"/>' if span else ""
            properties += '<w:vMerge w:val="restart"/>' if cell.startswith("v ") else ""
            properties += "<w:vMerge/>" if cell == "^" else ""
            made += f"<w:tc><w:tcPr>{properties}</w:tcPr>{paragraph(run(text.removeprefix('v ').strip('^')))}</w:tc>"
        made += "</w:tr>"
    grid = "<w:gridCol/>" * max(map(len, rows))
    return f"<w:tbl><w:tblPr/><w:tblGrid>{grid}</w:tblGrid>{made}</w:tbl>"


def write_pptx(path: Path, *slides: str, notes: str = "") -> Path:
    """A PowerPoint file; the slides are XML of shapes, in the order shown, which is not that of their names."""
    spaces = f'xmlns:p="{P}" xmlns:a="{A}" xmlns:r="{R}" xmlns:m="{M}"'
    names = [f"slide{len(slides) - n}" for n in range(len(slides))]
    listed = "".join(f'<p:sldId id="{256 + n}" r:id="s{n}"/>' for n in range(len(slides)))
    parts = {"ppt/presentation.xml": f"<p:presentation {spaces}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"}
    relations = {"ppt__presentation": "\n".join(f"s{n} slide slides/{name}.xml" for n, name in enumerate(names))}
    for name, shapes in zip(names, slides):
        parts[f"ppt/slides/{name}.xml"] = f"<p:sld {spaces}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
    if notes:
        parts["ppt/notesSlides/notesSlide1.xml"] = f"<p:notes {spaces}>{shape(notes, 'body')}</p:notes>"
        relations[f"ppt__slides__{names[0]}"] = "n1 notesSlide ../notesSlides/notesSlide1.xml"
    return write_parts(path, "presentationml.presentation.main", parts, **relations)


def shape(text: str, kind: str = "") -> str:
    """A shape with a paragraph per line; two spaces before a line are one level."""
    paragraphs = "".join(
        f'<a:p><a:pPr lvl="{(len(one) - len(one.lstrip())) // 2}"/><a:r><a:t>{one.strip()}</a:t></a:r></a:p>'
        for one in text.splitlines()
    )
    holder = f'<p:nvPr><p:ph type="{kind}"/></p:nvPr>' if kind else ""
    return f"<p:sp><p:nvSpPr>{holder}</p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>"
