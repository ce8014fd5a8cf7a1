"""Write the optional files of a case beside its volume: a DICOM series, a mu-map, its uncertainty."""

from dataclasses import asdict, dataclass

from cohort.inputs import CohortCase
from cohort.results import DICOM, MU_MAP, UNCERTAINTY
from data.prepared.case_names import short_hash
from data.values.attenuation import MuSettings
from data.volumes.dicom_series import Identity


@dataclass(frozen=True)
class Extras:
    """The extras that were requested.

    Attributes:
        model, epoch: what a DICOM series calls the model that made it.
        dicom: whether there is a series; anonymous: whether it leaves out the MR's identity.
        mu: how mu-maps are made; None: there are none.
        uncertainty: whether there is one.
    """

    model: str
    epoch: str
    dicom: bool = False
    anonymous: bool = False
    mu: MuSettings | None = None
    uncertainty: bool = False

    def asked(self, case: CohortCase) -> dict[str, dict]:
        """Return which extras a case must have, by kind, and what each depends on beside the case's key."""
        found = {}
        if self.dicom:
            identity = self.identity(case)  # of which a record holds nothing that can be read
            found[DICOM] = {"anonymous": identity.anonymous, "identity": short_hash(str(identity))}
            if identity.anonymous:  # not so in version 1.0.0 and earlier: those are made anew
                found[DICOM]["uids"] = "random"
        if self.mu:
            found[MU_MAP] = asdict(self.mu)
        if self.uncertainty:
            found[UNCERTAINTY] = {}
        return found

    def identity(self, case: CohortCase) -> Identity:
        """Return whose a case's series is."""
        return Identity(case.patient_name, case.patient_id, self.anonymous)
