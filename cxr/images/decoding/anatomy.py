# ruff: noqa: E501, RUF001
"""Names of body parts and of projections in the languages in which headers are written.

One name to a line of a table: what it is called here, then the terms that mean it. `*` at an end of
a term stands for any letters; a term without it is a whole word or phrase. Case, accents and
punctuation do not count. The first line with a term in a text decides, so that the thoracic spine
is not taken for the thorax. Codes are those of SNOMED CT and of SNOMED RT (SRT), which older files
use.

Source: DICOM PS3.16 annex L (body parts), CID 4009 and CID 4010 (2024), and PS3.3 section
C.8.1.2 (View Position).
"""

import functools
import re
import unicodedata

_BODY_PARTS = """
TSPINE     TSPINE; T SPINE; THORACICSPINE; THORACIC SPINE; DORSAL SPINE; BWS; *BRUSTWIRBEL*; T-11502; 122495006
CSPINE     CSPINE; C SPINE; CERVICALSPINE; *CERVICAL*; *CERVICAAL*; HWS; *HALSWIRBEL*; T-11501; 122494005
LSPINE     LSPINE; L SPINE; LUMBARSPINE; LUMBAR*; LOMBA*; LUMBAL*; LWS; *LENDENWIRBEL*; T-11503; 122496007
SACRUM     SACRUM; SAKRUM; SACRO*; *KREUZBEIN*; T-11AD0; 54735007
COCCYX     COCCYX; COCCIX; *STEISSBEIN*; T-11BF0; 64688005
SPINE      *SPINE*; *SPINAL*; *WIRBEL*; *COLUMNA*; COLUNA*; COLONNA*; COLONNE; RACHIS; *VERTEBR*;
           *KREGOSLUP*; KREG*; PATER; PATERE; *WERVEL*; *RYGG*; RYGSOJLE*; SELKARANKA; GERINC*; KRALJE*;
           ПОЗВОН*; ХРЕБЕТ; ΣΠΟΝΔΥΛ*; OMURGA*; *椎*; *脊*; *척추*; T-D04FF; 421060004
STERNUM    STERNUM; *BRUSTBEIN*; BORSTBEEN; BRYSTBEN; BRYSTBEIN; BROSTBEN; MOSTEK; ESTERNON; STERNO;
           ГРУДИНА; ΣΤΕΡΝΟ; *胸骨*; T-11210; 56873002
CHEST      *CHEST*; *THORAX*; *TORAX*; THORAC*; TORAC*; *THORACIQUE*; THORAK*; TORAK*; THX;
           LUNG*; *LUNGS*; PULM*; POUMON*; POLMON*; BRUST; BRUSTKORB*; BRUSTRAUM; *POITRINE*;
           PECHO; PEITO; BORST; BORSTKAS*; LONGEN; LONGFOTO; KLATKA*; PIERSI*; PLUC*; HRUD*; PLICE;
           BRYST; BRYSTKASSE*; BROST; BROSTKORG*; RINTA; RINTAKEHA*; KEUHKO*; MELLKAS*; PLAMAN*; GRUDN*;
           PRSNI KOS; NGUC; ГРУД*; ОГК; ЛЕГКИ*; ЛЕГЕН*; ТОРАКС; ГРЪД*; ΘΩΡΑΚ*; ΘΩΡΑΞ; ΠΝΕΥΜΟΝ*; GOGUS*;
           AKCIGER*; *胸*; *肺*; *흉부*; *가슴*; *폐*; T-D3000; 51185008; 816094009; 43799004; T-28000; 39607008;
           T-280A0; 86598002; R-FAB52; 417437006; R-FAB53; 416152001; R-FAB54; 416319003; R-FAB55;
           416550000; R-FAB56; 416775004
RIBS       RIB; RIBS; RIBCAGE; RIPPE*; RIPPEN*; COTES; COSTAL*; COSTILLA*; COSTE; COSTELA*; RIBBEN; ZEBRA;
           RIBBEIN; REVBEN*; ZEBR*; РЕБР*; ΠΛΕΥΡ*; KABURGA*; *肋*; T-11300; 113197003
BREAST     BREAST*; MAMMA*; MAMMO*; MAMA; MAMAS; SEIN; SEINS; SENO; *乳*; T-04000; 76752008
ABDOMEN    *ABDOM*; ADDOM*; BAUCH*; BUIK; BRZUCH*; BRICH*; BUKEN; VATSA; ЖИВОТ; БРЮШ*; ΚΟΙΛΙΑ*; KARIN; *腹*;
           T-D4000; 113345001; 818981001; 818982008; 818983003
PELVIS     PELVIS; BECKEN*; BASSIN; BACINO; BACIA; BEKKEN; BACKEN; MIEDNIC*; PANEV; LANTIO; ТАЗ; ΠΥΕΛΟ*;
           PELVIK; *骨盤*; *骨盆*; T-D6000; 12921003; 816092008
HIP        HIP; HIPS; HIPJOINT; HUFT*; HUEFT*; HANCHE*; ANCA; ANCHE; CADERA*; QUADRIL; HEUP; HEUPEN;
           BIODR*; KYCEL*; KYCLE; HOFT; HOFTE*; HOFTLED*; LONKKA; ТАЗОБЕДР*; ΙΣΧΙΟ*; KALCA; *股関節*; *髋*; *髖*;
           T-15710; 24136001; T-D2500; 29836001
SKULL      SKULL; SCHADEL*; SCHAEDEL*; CRANE; CRANIO; CRANEO; CRANIUM; SCHEDEL*; CZASZK*; LEBKA; KALLO; SKALLE;
           ЧЕРЕП*; ΚΡΑΝΙΟ*; KAFATAS*; *頭*; *颅*; *顱*; T-11100; 89546000
HEAD       HEAD; KOPF*; TETE; TESTA; CABEZA; CABECA; HOOFD; GLOWA; HLAVA; HUVUD; HOVED; HODE; ГОЛОВ*; ΚΕΦΑΛ*;
           *头*; T-D1100; 69536005
SINUSES    SINUS*; *NNH*; SENI PARANASALI; SENOS PARANASALES; SEIOS*; ZATOK*; ΙΓΜΟΡΕΙ*; *鼻*; T-22000; 2095001
JAW        JAW; MANDIB*; MAXILLA*; KIEFER*; OPG; ORTHOPANTO*; DENTAL; TEETH; ZAHN*; DENTS; T-D1213; 661005;
           T-11180; 91609006; T-11170; 70925003
EYE        EYE; EYES; ORBIT*; AUGE; AUGEN; T-AA000; 81745001; T-D14AE; 363654007
NECK       NECK; HALS; COU; COLLO; CUELLO; PESCOCO; SZYJA; KRK; ШЕЯ; BOYUN; *頸部*; *颈部*; T-D1600; 45048000
CLAVICLE   CLAVIC*; CLAVICOLA; SCHLUSSELBEIN*; SCHLUESSELBEIN*; SLEUTELBEEN; OBOJCZYK; KLICNI KOST;
           NYCKELBEN; КЛЮЧИЦ*; ΚΛΕΙΔ*; *鎖骨*; *锁骨*; T-12310; 51299004
SCAPULA    SCAPULA; SCHULTERBLATT*; OMOPLATE; SCAPOLA; ESCAPULA; ЛОПАТК*; *肩甲*; *肩胛*; T-12280; 79601000
SHOULDER   SHOULDER*; SCHULTER*; EPAULE*; SPALLA; HOMBRO*; OMBRO*; SCHOUDER*; BARK; RAMENO; AXEL; SKULDER;
           OLKAPAA; ПЛЕЧЕВОЙ*; ΩΜΟΣ; OMUZ; *肩*; T-D2220; 16982005; T-15420; 85856004
HUMERUS    HUMER*; UPPER ARM; UPPERARM; OBERARM*; OMERO; UMERO; ПЛЕЧ*; *上腕*; *肱骨*; T-12410; 85050009;
           T-D8200; 40983000
ELBOW      ELBOW*; ELLBOGEN*; ELLENBOGEN*; COUDE; GOMITO; CODO; COTOVELO; ELLEBOOG; LOKIEC; LOKET; ARMBAGE;
           ALBUE; KYYNAR*; ЛОКТ*; ΑΓΚΩΝ*; DIRSEK; *肘*; T-15430; 16953009
FOREARM    FOREARM*; UNTERARM*; AVANT BRAS; AVAMBRACCIO; ANTEBRA*; ONDERARM; PRZEDRAMI*; PREDLOKTI; UNDERARM;
           ПРЕДПЛЕЧ*; ONKOL; *前腕*; *前臂*; T-D8500; 14975008
WRIST      WRIST*; HANDGELENK*; POIGNET*; POLSO; MUNECA; PUNHO; POLS; NADGARST*; ZAPESTI; HANDLED;
           HANDLEDD; HANDLEDEN; RANNE; ЛУЧЕЗАПЯСТ*; ΚΑΡΠΟΣ; *手関節*; *腕关节*; T-15460; 74670003
THUMB      THUMB*; DAUMEN; POUCE; POLLICE; PULGAR; POLEGAR; DUIM; KCIUK; PALEC RUKY; T-D8810; 76505004
FINGER     FINGER*; DOIGT*; DITO; DEDO; DEDOS; VINGER*; PALEC; ПАЛЕЦ*; *指*; T-D8800; 7569003
HAND       HAND; HANDS; HANDE; HAENDE; MAIN; MAINS; MANO; MANI; MANOS; MAO; MAOS; DLON; RUKA; KASI;
           КИСТ*; ΧΕΙΡ; ΧΕΡΙ; EL GRAFI*; *手*; T-D8700; 85562004
ARM        ARM; ARMS; BRAS; BRACCIO; BRAZO; BRACO; REKA; UPPER LIMB; UPPERLIMB; T-D8000; 53120007
FEMUR      FEMUR*; THIGH*; OBERSCHENKEL*; CUISSE; FEMORE; MUSLO; COXA; BOVENBEEN; UDO; БЕДР*; ΜΗΡΟΣ; UYLUK;
           *大腿*; *股骨*; T-12710; 71341001; T-D9100; 68367000
KNEE       KNEE*; KNIE*; GENOU*; GINOCCHI*; RODILLA*; JOELHO*; KOLAN*; KOLENO; KNA; KNALED*; KNAE; KNE; POLVI;
           КОЛЕН*; ΓΟΝΑ*; DIZ; *膝*; T-D9200; 72696002; T-12730; 64234005; PATEL*
ANKLE      ANKLE*; SPRUNGGELENK*; OSG; CHEVILLE*; CAVIGLIA; TOBILLO*; TORNOZELO*; ENKEL*; KOSTK*; KOTNIK;
           FOTLED*; ANKEL*; NILKKA; ГОЛЕНОСТОП*; ΠΟΔΟΚΝΗΜ*; AYAK BILEG*; *足関節*; *踝*; T-15750; 70258002
LEG        LEG; LEGS; LOWERLEG; LOWER LEG; UNTERSCHENKEL*; JAMBE*; GAMBA*; PIERNA*; PERNA*; BEEN; ONDERBEEN;
           TIBIA*; FIBULA*; PODUDZI*; NOHA; UNDERBEN; ГОЛЕН*; BACAK; *下腿*; *小腿*; T-D9400; 30021000; T-D9000;
           61685007; T-12750; 87342007
CALCANEUS  CALCAN*; HEEL; FERSENBEIN; FERSE; TALON; T-12770; 80144004
TOE        TOE; TOES; ZEH; ZEHE; ZEHEN; ORTEIL*; TENEN; T-D9800; 29707007
FOOT       FOOT; FEET; FORE FOOT; VORFUSS; FUSS; FUSSE; PIED; PIEDS; PIEDE; PIEDI; PIE; PIES; PE; VOET*; STOP*;
           NOHY; FOT; FOD; JALKA; СТОП*; ΠΟΔΙ; AYAK; *足*; T-D9700; 56459004
EXTREMITY  EXTREM*; LIMB; LIMBS; T-D0300; 66019005
"""

_PROJECTIONS = """
decubitus  *DECUB*; LLD; RLD; SEITENLAGE*
oblique    OBLIQUE*; OBL; LAO; RAO; LPO; RPO; LLO; RLO; OBLICU*; OBLIQU*; OBLIKV*; SCHRAG*; SCHRAEG*; SKRA;
           SKOSN*; SIKM*; КОСАЯ; КОСОЙ; КОСЫЕ; *斜位*; R-10204; 399160007; R-10208; 399312000; R-10210; 399038007; R-10212;
           399006002; R-10216; 399059000; R-10218; R-40985; 399356000; R-10220; 399135007; R-10226;
           399368009; R-10230; 399099002; R-10234; 399236003; R-10238; 399184004; R-102C1; 399182000;
           R-40782; 260426006; R-40783; 260427002
lateral    LAT; LATS; LLAT; RLAT; LATL; LATR; LTLAT; RTLAT; XLAT; XTLAT; LATERAL; LLATERAL; RLATERAL; LATERALE;
           LATERALES; LATERALIS; LATERAAL; LATERALT; LATERALN*; LATEROLATERAL*; LL; RL; SEITL; SEITLICH*;
           SEITAUFNAHME*; SEITENAUFNAHME*; PROFIL; PROFILO; PERFIL; SIDOBILD*; SIDOPROJ*; SIDEBILDE*;
           SIDEOPTAGELSE*; ZIJDELINGS*; ZIJAANZICHT*; DWARS*; BOCZN*; BOK; BOCN*; SIVUKUVA*; SIVU; OLDAL*; БОК;
           БОКОВ*; ЛАТЕРАЛ*; ΠΛΑΓΙΑ; ΠΛΑΓΙΟ; ΠΡΟΦΙΛ; YAN; *側面*; *侧面*; *侧位*; *側位*; *측면*;
           R-102CD; 399067008; R-10236; 399173006; R-10232; 399198007; R-10224; 399260004; R-10228;
           399352003; G-A145; 30730003
frontal    PA; AP; DV; VD; FRONTAL*; FACE; FRENTE; *ANTEROPOST*; *ANTERIORPOST*; *ANTERO POST*; *POSTEROANT*;
           *POSTERO ANT*; POSTERIOR ANTERIOR; ANTERIOR POSTERIOR; DORSOVENTRAL*; VENTRODORSAL*; SAGITTALER STRAHLENGANG;
           ПРЯМ*; *正面*; *正位*; *정면*; R-10202; 399033003; R-10206; 399348003; R-10214; R-40888; 272479007
"""


def body_part(text: str) -> str:
    """The English name of the first body part of the table in a text; empty if there is none."""
    return next(iter(_matches(_BODY_PARTS, text)), "")


def projections(text: str) -> set[str]:
    """What a text names of `"decubitus"`, `"oblique"`, `"lateral"` and `"frontal"`."""
    named = set(_matches(_PROJECTIONS, text))
    # A view in lateral decubitus is a frontal one of a patient who lies on a side.
    return named - {"oblique", "lateral"} if "decubitus" in named else named


def folded(text: str) -> str:
    """Words in capitals without accents, one blank between two: `Tórax, P.A.` is `TORAX PA`."""
    plain = text.translate(str.maketrans("łŁøØđĐıß", "lLoOdDis")).replace("æ", "ae")
    letters = unicodedata.normalize("NFKD", plain.replace("Æ", "AE"))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", bare).upper()).strip()
    return re.sub(r"\b([AP]) ([AP])\b", r"\1\2", words)


def _matches(table: str, text: str) -> list[str]:
    words = folded(text)
    return [name for name, pattern in _compiled(table) if pattern.search(words)]


@functools.cache
def _compiled(table: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Names and patterns of a table's lines, in its order."""
    rows = re.findall(r"^(\S+) +((?:.+)(?:\n +.+)*)", table, re.MULTILINE)
    return tuple(
        (name, re.compile("|".join(_pattern(term) for term in terms.split(";") if term.strip())))
        for name, terms in rows
    )


def _pattern(term: str) -> str:
    term = term.strip()
    start = "" if term.startswith("*") else r"(?<!\w)"
    end = "" if term.endswith("*") else r"(?!\w)"
    return start + folded(term.strip("*")) + end
