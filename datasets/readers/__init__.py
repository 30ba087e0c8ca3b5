"""temp"""
class R:
    def __init__(s,k): s.kind=k
def reader_of(name):
    n=name.removesuffix("_ND")
    return R("open_domain" if n.startswith("opendomain") else "anomaly" if n in ("mvtec","visa") else "episodes")
