"""What is to be done when somebody has registered."""

from __future__ import annotations

import os
import smtplib
from dataclasses import dataclass
from email.message import EmailMessage

import aiosmtplib

from taskflow import Backoff, JobContext, job

SMTP = ("127.0.0.1", int(os.environ.get("SMTP_PORT", "1025")))


@dataclass
class WelcomeEmail:
    user_id: str
    email: str


@job(name="send_welcome_email", max_attempts=3, retry=Backoff(base=0.25, factor=3, jitter=False))
async def send_welcome_email(ctx: JobContext, data: WelcomeEmail) -> str:
    """The job's id is the message's id: should it be sent twice, the receiving side can tell."""
    message = a_message(ctx, data.email, "Welcome!", f"Hello {data.user_id}, this is attempt {ctx.attempt} of {ctx.max_attempts}.")
    await aiosmtplib.send(message, hostname=SMTP[0], port=SMTP[1])
    return f"{data.email} has been welcomed"


@job(name="tell_staff", queue="staff")
def tell_staff(ctx: JobContext, user_id: str) -> None:
    """A plain function: it runs in a thread, so it may block."""
    with smtplib.SMTP(*SMTP) as server:
        server.send_message(a_message(ctx, "staff@example.com", "A new user", user_id))


def a_message(ctx: JobContext, to: str, subject: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "app@example.com", to, subject
    message["Message-ID"] = f"<{ctx.job_id}@example.com>"
    message["X-Attempt"] = str(ctx.attempt)
    message.set_content(text)
    return message
