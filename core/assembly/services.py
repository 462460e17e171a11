"""Every service of utrn.v1 over the parts that decide."""

from core.api.appointment_servicer import AppointmentServicer
from core.api.authenticate import Authenticate
from core.api.credit_servicer import CreditServicer
from core.api.meter_model_servicer import MeterModelServicer
from core.api.meter_servicer import MeterServicer
from core.api.pan_servicer import PanServicer
from core.api.participant_servicer import ParticipantServicer
from core.api.registry_servicer import RegistryServicer
from core.api.server import CallersServices
from core.api.top_up_servicer import TopUpServicer
from core.assembly.administration import Administration
from core.assembly.issuing import Issuing
from core.delivery.manual_entry import AdviseByHand
from core.issuing.config import DeliveryConfig


def callers_services(
    issuing: Issuing, administration: Administration, authenticate: Authenticate, delivery: DeliveryConfig
) -> CallersServices:
    """Return every service of utrn.v1, by which participants call a node."""
    clock, pan_rule, view = issuing.ports.clock, issuing.config.pan, administration.view
    parties = administration.parties
    return CallersServices(
        top_up=TopUpServicer(
            authenticate=authenticate,
            issue=issuing.issue,
            send=issuing.send,
            find=issuing.find,
            check=issuing.check,
            advise=AdviseByHand(clock, delivery),
            cases=administration.cases,
            pan_rule=pan_rule,
        ),
        participants=ParticipantServicer(authenticate=authenticate, parties=parties, view=view, clock=clock),
        meter_models=MeterModelServicer(authenticate=authenticate, parties=parties, view=view, clock=clock),
        meters=MeterServicer(
            authenticate=authenticate,
            meters=administration.meters,
            exchange=administration.exchange,
            hand_over=administration.hand_over,
            view=view,
            clock=clock,
            pan_rule=pan_rule,
        ),
        pans=PanServicer(
            authenticate=authenticate,
            pans=administration.pans,
            reconcile=administration.reconcile,
            view=view,
            clock=clock,
            pan_rule=pan_rule,
        ),
        registry=RegistryServicer(authenticate=authenticate, load=administration.load, clock=clock, pan_rule=pan_rule),
        appointments=AppointmentServicer(authenticate=authenticate, appoint=administration.appoint, view=view),
        credit=CreditServicer(authenticate=authenticate, credit=administration.credit, clock=clock, pan_rule=pan_rule),
    )
